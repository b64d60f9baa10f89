"""How large the learning rate is to be for the size of the batch: a grid of both, and which of them came out best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shoestring.errors import UsageError
from shoestring.method import Positive, method


class RateAndBatch(NamedTuple):
    """rate: the learning rate. batch: sequences of a step."""

    rate: float
    batch: int

    @property
    def ratio(self) -> float:
        """Of the rate to the batch."""
        return self.rate / self.batch


@dataclass(frozen=True)
class RatioFound:
    """What a sweep says of one figure, of which less is better.

    best: the setting with the least. edge: whether a ratio beyond those tried may be better.
    fitted: the ratio with the least of a parabola in its logarithm; None where there is no such, or it is beyond those tried.
    """

    best: RateAndBatch
    edge: bool
    fitted: float | None


@method(
    "tune",
    kind="sweep",
    name="rate_to_batch",
    paper="SmolTulu: Higher Learning Rate to Batch Size Ratios Can Lead to Better Reasoning in SLMs, arXiv:2412.08347",
    claim="in a model of 135 M parameters, ARC and GSM8K gain from higher ratios of rate to batch, HellaSwag and IFEval from lower",
    cost="a run for each setting, all of them a share of the budget",
)
@dataclass(frozen=True, kw_only=True)
class RateToBatch:
    """Try each rate with each batch, at equal cost, and see which ratio is best for what is asked of the model.

    Alrashed (2024), arXiv:2412.08347: what counts is the ratio u = rate / batch, and the best one differs by task. So the answer is
    one for each figure that is judged: the setting with the least, and the least of y = a + b ln u + c (ln u)^2 by least squares.
    The paper looks at two-dimensional maps by eye. A larger run with another batch keeps the ratio (`transferred`).

    rates: factors on a method's own rate. batches: factors on the planned batch.
    """

    rates: tuple[Positive, ...] = (1 / 3, 1.0, 3.0)
    batches: tuple[Positive, ...] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if not self.rates or not self.batches or min(*self.rates, *self.batches) <= 0:
            raise UsageError("rate_to_batch needs factors above 0 of the rate and of the batch")

    def settings(self, rate: float, batch: int) -> list[RateAndBatch]:
        """What is tried, by rising ratio; no setting twice."""
        batches = dict.fromkeys(max(1, round(batch * factor)) for factor in self.batches)
        made = [RateAndBatch(rate * factor, size) for factor in dict.fromkeys(self.rates) for size in batches]
        return sorted(made, key=lambda one: (one.ratio, one.batch))

    def found(self, tried: Sequence[tuple[RateAndBatch, float]]) -> RatioFound:
        """What these settings and figures say. Raises: UsageError where none has a finite figure."""
        known = [(setting, value) for setting, value in tried if math.isfinite(value)]
        if not known:
            raise UsageError("no setting of the sweep came to an end: try lower rates")
        best = min(known, key=lambda each: each[1])[0]
        ratios = sorted({setting.ratio for setting, _ in known})
        edge = len(ratios) > 1 and best.ratio in (ratios[0], ratios[-1])
        return RatioFound(best, edge, self._fitted(known, ratios))

    @staticmethod
    def transferred(ratio: float, batch: int) -> float:
        """The rate for another batch."""
        return ratio * batch

    def _fitted(self, known: Sequence[tuple[RateAndBatch, float]], ratios: Sequence[float]) -> float | None:
        if len(ratios) < 3:
            return None
        u = np.log([setting.ratio for setting, _ in known])
        second, first, _ = np.polyfit(u - u.mean(), [value for _, value in known], 2)
        if second <= 0:
            return None
        least = math.exp(-first / (2 * second) + u.mean())
        return least if ratios[0] <= least <= ratios[-1] else None
