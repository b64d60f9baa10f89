"""Pruning at random: what every other way of choosing must beat."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import Count, Fraction, method
from shoestring.surgery.pruning import Kept, Pruning, Shares, axis_of, kept_count, kept_heads, width_multiple


@method(
    "surgery",
    kind="edit",
    name="random_pruning",
    claim="the yardstick of a way of choosing: no choice at all",
    cost="none",
)
class RandomPruning(Pruning):
    """Leave indices that are drawn evenly, by the seed of the run.

    width, hidden, heads: shares that stay.
    multiple: sizes of width and hidden are multiples of this.
    """

    needs: frozenset[str] = frozenset()
    divides = True

    def __init__(
        self, *, width: Fraction = 1.0, hidden: Fraction = 1.0, heads: Fraction = 1.0, multiple: Count = 8
    ) -> None:
        self.shares, self.multiple = Shares(width, hidden, heads), multiple

    def choose(self, model: LanguageModule, evidence: Evidence) -> tuple[Kept, Mapping[str, Tensor], Charge]:
        """As `Pruning.choose`."""
        generator, anatomy = torch.Generator().manual_seed(evidence.seed), model.anatomy()
        kept: Kept = []
        for kind, share, multiple in (
            ("key_value_head", self.shares.heads, 1),
            ("hidden", self.shares.hidden, self.multiple),
            ("width", self.shares.width, width_multiple(kept_heads(model, self.shares.heads), self.multiple)),
        ):
            if share == 1:
                continue
            for axis in anatomy.axes(kind) or [axis_of(anatomy, kind, None)]:
                drawn = torch.randperm(axis.size, generator=generator)[: kept_count(axis.size, share, multiple)]
                kept.append({"kind": kind, "layer": axis.layer, "indices": sorted(drawn.tolist())})
        return kept, {}, NOTHING
