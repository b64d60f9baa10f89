"""Confidence intervals of ratios of sums, such as bits a byte, over units of unequal size.

Units are documents, say, with numerators a_1 .. a_n (bits) and denominators b_1 .. b_n (bytes). The estimate is R = sum a / sum b.
Its standard error is the delete-one jackknife's (Tukey, 1958; Efron and Stein, 1981, "The jackknife estimate of variance"):

    R_(i) = (sum a - a_i) / (sum b - b_i),    se^2 = (n - 1) / n  sum_i (R_(i) - mean R_(.))^2
    interval  R +- q se,    q of Student's t with m - 1 degrees of freedom,    m = (sum b)^2 / sum b^2

m is Kish's effective number of units (1965, "Survey Sampling"): a few long documents are not as many as there are short ones.
The difference of two models on the same units is treated alike, with the difference of their R_(i): what a text is for both, hard
or easy, leaves it.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and what it may be off by.

    value: the estimate.
    low, high: its interval at `CONFIDENCE`; None where there are too few units for one.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero: for a difference."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def effective(sizes: np.ndarray) -> float:
    """Kish's effective number of units of these sizes [n]; 0 without any."""
    total = float(sizes.sum())
    return total * total / float((sizes * sizes).sum()) if total else 0.0


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """sum a / sum b with its interval. numerators, denominators: [n] float, the sum of the latter above 0."""
    value = float(numerators.sum() / denominators.sum())
    return _with_interval(value, _without_each(numerators, denominators), denominators)


def difference(numerators: np.ndarray, base: np.ndarray, denominators: np.ndarray) -> Estimate:
    """(sum a - sum base) / sum b with its interval. All [n] float, of the same units in the same order."""
    return ratio(numerators - base, denominators)


def _without_each(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """The ratio without each unit in turn; a unit that is all there is has none."""
    left = denominators.sum() - denominators
    kept = left > 0
    found: np.ndarray = (numerators.sum() - numerators)[kept] / left[kept]
    return found


def _with_interval(value: float, without: np.ndarray, sizes: np.ndarray) -> Estimate:
    count, freedom = len(without), effective(sizes) - 1
    if count < 2 or freedom < 0.5:
        return Estimate(value, None, None)
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Estimate(value, value - half, value + half)
