"""Texts planted a given number of times, evenly over a stretch of the run."""

from collections.abc import Mapping
from typing import Any

from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method


@method(
    "data",
    kind="intervention",
    name="planted_texts",
    paper="Train Once, Answer All: Many Pretraining Experiments for the Cost of One, arXiv:2509.23383",
    claim="ten experiments in one run of 1.5B parameters on 210B tokens replicate earlier results on contamination, poisoning and "
    "memorisation, with little influence on the run",
    cost="the rows that texts are planted in, which are not read as they were",
)
class PlantedTexts:
    """By progress p, floor(texts times (p - begin) / (finish - begin)) plantings were made: contamination, poisoning, memorisation.

    Planted are the texts in turn, each `times` times. What they did is seen by holding the model's loss on them against that on
    texts like them that were not planted. The paper inserts at steps; a budget's steps are not known before it is spent, so here
    it is by progress. Plantings that are still due when the run ends are not made.

    file: of the texts, JSON lines with 'text'.
    times: plantings of each text.
    begin, finish: shares of the budget.
    """

    def __init__(self, *, file: str, times: Count = 1, begin: Fraction = 0.0, finish: Fraction = 0.9) -> None:
        if begin >= finish:
            raise UsageError(f"planted_texts: begin = {begin} must be below finish = {finish}")
        self.file, self.times, self.begin, self.finish = file, times, begin, finish

    def due(self, texts: int, progress: float) -> int:
        along = (progress - self.begin) / (self.finish - self.begin)
        return int(texts * self.times * min(max(along, 0.0), 1.0))

    def hear(self, progress: float, losses: Mapping[str, float], planted: int) -> None:
        """It does not listen."""

    def state(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        """It has nothing to restore."""
