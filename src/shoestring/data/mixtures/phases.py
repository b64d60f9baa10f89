"""Shares by phases of the run, the last of which may anneal on chosen text."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from shoestring.data.mixture import Domain, Shares, Unmoved, shares_of
from shoestring.errors import UsageError
from shoestring.method import Fraction, NonNegative, method


@method(
    "data",
    kind="mixture",
    name="phases",
    paper="YuLan-Mini: An Open Data-efficient Language Model, arXiv:2412.17743",
    claim="scheduling the data by phases, with chosen data as the learning rate anneals, is one of three parts of the recipe",
    cost="nothing",
)
class Phases(Unmoved):
    """Constant weights within each phase, which ends at a share of the budget.

    The report has 27 phases of 40 billion tokens, whose composition is changed a little from one to the next, by hand and by
    the loss on held-out text; the last ones anneal on chosen data. Here each phase is written down before the run.

    until: shares of the budget at which the phases end, ascending, but for that of the last phase.
    weights: a table for each phase: weights by source.
    limit: the most that a source's weight may change from one phase to the next; 0: as much as is written.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        until: tuple[Fraction, ...],
        weights: tuple[Shares, ...],
        limit: NonNegative = 0.0,
    ) -> None:
        if len(weights) != len(until) + 1:
            raise UsageError(
                f"phases: {len(until)} ends are of {len(until) + 1} phases, and there are weights of {len(weights)}"
            )
        if any(one >= other for one, other in pairwise(until)):
            raise UsageError(f"phases: until = {', '.join(map(str, until))} must ascend")
        self._until = np.array(until)
        self._weights = [shares_of(domains, each, f"weights of phase {n}") for n, each in enumerate(weights, 1)]
        for number, (one, other) in enumerate(pairwise(self._weights), 1):
            if limit and np.abs(other - one).max() > limit + 1e-12:
                raise UsageError(f"phases: a source changes by more than limit = {limit} after phase {number}")

    def weights(self, progress: float) -> np.ndarray:
        return self._weights[int(np.searchsorted(self._until, progress, side="right"))]
