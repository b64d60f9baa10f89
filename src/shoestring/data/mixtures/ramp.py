"""Shares that change gradually from one mixture to another."""

from collections.abc import Sequence

import numpy as np

from shoestring.data.mixture import Domain, Shares, Unmoved, shares_of
from shoestring.errors import UsageError
from shoestring.method import Fraction, method


@method(
    "data",
    kind="mixture",
    name="ramp",
    paper="Motif 2 12.7B technical report, arXiv:2511.07464",
    claim="a curriculum that gradually changes the composition of the data, in place of stages, is part of the recipe",
    cost="nothing",
)
class Ramp(Unmoved):
    """Weights go in a straight line from `start` to `end`, between two shares of the budget.

    w(p) = (1 - a) start + a end, a = (p - begin) / (finish - begin), held in [0, 1]. The report gives no formula for its change
    of composition; a straight line is the plainest.

    end: weights by source, from `finish` on.
    start: weights by source, until `begin`; none given: in proportion to tokens.
    begin: share of the budget at which they begin to change.
    finish: share of the budget at which they have changed.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        end: Shares,
        start: Shares | None = None,
        begin: Fraction = 0.0,
        finish: Fraction = 1.0,
    ) -> None:
        if begin >= finish:
            raise UsageError(f"ramp: begin = {begin} must be below finish = {finish}")
        self._start, self._end = shares_of(domains, start, "start"), shares_of(domains, end, "end")
        self._begin, self._finish = begin, finish

    def weights(self, progress: float) -> np.ndarray:
        along = min(max((progress - self._begin) / (self._finish - self._begin), 0.0), 1.0)
        return (1 - along) * self._start + along * self._end
