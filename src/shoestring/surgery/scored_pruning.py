"""What methods of pruning share that give each index of an axis a score: those of the largest scores stay."""

import abc
from collections.abc import Mapping, Sequence

from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.surgery.pruning import Kept, Pruning, Shares, axis_of, best_of, kept_heads, kept_of, width_multiple

Scores = Mapping[tuple[str, int | None], Tensor]
"""[size] of each axis, by its kind and layer."""


class ScoredPruning(Pruning):
    """Leave the indices of the largest scores, as many of every layer.

    width, hidden, heads: shares that stay.
    multiple: sizes of width and hidden are multiples of this.
    """

    divides = True

    def __init__(self, *, width: float = 1.0, hidden: float = 1.0, heads: float = 1.0, multiple: int = 8) -> None:
        self.shares, self.multiple = Shares(width, hidden, heads), multiple

    @abc.abstractmethod
    def scores(self, model: LanguageModule, evidence: Evidence, kinds: Sequence[str]) -> tuple[Scores, Charge]:
        """(how much each index of the axes of these kinds counts, what finding that took). The model stays as it is."""

    def choose(self, model: LanguageModule, evidence: Evidence) -> tuple[Kept, Mapping[str, Tensor], Charge]:
        """As `Pruning.choose`."""
        asked = [(kind, share) for kind, share in self._asked() if share < 1]
        for kind, _ in asked:
            if not model.anatomy().axes(kind):
                axis_of(model.anatomy(), kind, None)  # says that there is none
        scores, spent = self.scores(model, evidence, [kind for kind, _ in asked])
        kept: Kept = []
        multiples = {
            "key_value_head": 1,
            "head": 1,
            "width": width_multiple(kept_heads(model, self.shares.heads), self.multiple),
        }
        for kind, share in asked:
            for (of, layer), score in scores.items():
                if of == kind:
                    axis = axis_of(model.anatomy(), kind, layer)
                    count = kept_of(axis, share, multiples.get(kind, self.multiple))
                    kept.append({"kind": kind, "layer": layer, "indices": best_of(axis, score, count)})
        return kept, {}, spent

    def _asked(self) -> list[tuple[str, float]]:
        shares = self.shares
        return [("key_value_head", shares.heads), ("hidden", shares.hidden), ("width", shares.width)]
