"""Pruning of width, hidden features and heads by how active they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import Count, Fraction, method
from shoestring.surgery.observe import observe
from shoestring.surgery.pruning import axis_of, readers
from shoestring.surgery.scored_pruning import ScoredPruning, Scores


@method(
    "surgery",
    kind="edit",
    name="minitron",
    paper="Compact Language Models via Pruning and Knowledge Distillation, arXiv:2407.14679",
    claim="pruned from Nemotron-4 15B and distilled, models need up to 40x fewer training tokens than from scratch",
    cost="one forward pass over the calibration text",
)
class Minitron(ScoredPruning):
    """Leave the features and heads that are the most active on a calibration text.

    With x [B, T, n] what reads an axis, its index i counts as much as

        F_i = || mean_t | x_{b,t,i} | ||_2 over b

    for hidden features (what the output matrix reads) and for the width (what is read after each norm, added up over the layers);
    a head counts as the same of the norm of its output. All are measured once, on the whole model.

    Of grouped queries, whole groups go with their key and value head; the paper's models have their heads pruned one by one.

    width, hidden, heads: shares that stay.
    multiple: sizes of width and hidden are multiples of this, for the sake of fast products.
    """

    def __init__(
        self, *, width: Fraction = 1.0, hidden: Fraction = 1.0, heads: Fraction = 1.0, multiple: Count = 8
    ) -> None:
        super().__init__(width=width, hidden=hidden, heads=heads, multiple=multiple)

    def scores(self, model: LanguageModule, evidence: Evidence, kinds: Sequence[str]) -> tuple[Scores, Charge]:
        """As `ScoredPruning.scores`."""
        return activity(model, evidence, kinds)


def activity(
    model: LanguageModule, evidence: Evidence, kinds: Sequence[str]
) -> tuple[dict[tuple[str, int | None], Tensor], Charge]:
    """(how active each index of these kinds of axes is, by kind and layer; what measuring it took)."""
    anatomy = model.anatomy()
    squares: dict[tuple[str, int | None], Tensor] = {}
    watched: dict[str, list[tuple[tuple[str, int | None], int]]] = {}
    for kind in kinds:
        axes = anatomy.axes(kind) or [axis_of(anatomy, kind, None)]
        for axis in axes:
            key = kind, axis.layer
            # heads are read as the query heads that share them
            read = axis_of(anatomy, "head", axis.layer) if kind == "key_value_head" else axis
            squares[key] = torch.zeros(axis.size)
            for name in readers(model, read):
                watched.setdefault(name, []).append((key, axis.size))

    def look(name: str, inputs: Tensor) -> None:
        for key, size in watched[name]:
            x = inputs.float()
            by_index = x.unflatten(-1, (size, -1)).norm(dim=-1) if key[0] == "key_value_head" else x.abs()
            squares[key] += by_index.mean(1).square().sum(0).cpu()

    spent = observe(model, evidence.text, list(watched), look) if watched else NOTHING
    return {key: total.sqrt() for key, total in squares.items()}, spent
