"""What the layers of a model read: the second moments of the inputs of its matrices, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.contract.model import LanguageModule
from shoestring.quantise.inputs import SEEN
from shoestring.surgery.observe import Walk, watching


@dataclass(frozen=True)
class SeenInputs:
    """What a matrix reads.

    moments: the mean of x x^T, float32 [in, in]. some: float32 [tokens, in], of the first tokens.
    """

    moments: Tensor
    some: Tensor


def seen(model: LanguageModule, walk: Walk, names: Sequence[str]) -> dict[str, SeenInputs]:
    """What each matrix of the present layer reads, in one pass of the layer.

    A matrix that read nothing (an expert that no token went to) is left out.
    """
    totals: dict[str, Tensor] = {}
    some: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def look(name: str, inputs: Tensor) -> None:
        x = inputs.flatten(0, -2).cpu().float()
        if name not in totals:
            totals[name], some[name] = torch.zeros(x.shape[1], x.shape[1]), x[:SEEN].clone()
        elif len(some[name]) < SEEN:
            some[name] = torch.cat([some[name], x[: SEEN - len(some[name])]])
        totals[name].addmm_(x.T, x)
        counts[name] += len(x)

    with watching(model, names, look):
        walk.run()
    return {name: SeenInputs(total / counts[name], some[name]) for name, total in totals.items() if counts[name]}
