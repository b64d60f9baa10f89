"""What the layers of a model read: the second moments of the inputs of its matrices, layer by layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.contract.model import LanguageModule
from shoestring.surgery.observe import Walk, watching


def moments(model: LanguageModule, walk: Walk, names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of x x^T, float32 [in, in], over the tokens x that each matrix of the present layer reads; one pass of the layer.

    A matrix that read nothing (an expert that no token went to) is left out.
    """
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def look(name: str, inputs: Tensor) -> None:
        x = inputs.flatten(0, -2).cpu().float()
        if name not in totals:
            totals[name] = torch.zeros(x.shape[1], x.shape[1])
        totals[name].addmm_(x.T, x)
        counts[name] += len(x)

    with watching(model, names, look):
        walk.run()
    return {name: total / counts[name] for name, total in totals.items() if counts[name]}
