"""What paired differences show: mean, interval, p-value, and the smallest difference they could have shown.

Runs of two arms at one seed share data order and, where shapes allow, first weights, so much of a seed's luck is in both
and leaves their difference. With d_1 .. d_n the differences, m their mean and s their standard deviation (n - 1 below):

    interval  m +- q s / sqrt(n),    q the (1 + confidence) / 2 quantile of Student's t with n - 1 degrees of freedom
    p-value   P(|T| >= |m| sqrt(n) / s)

(Student, 1908, "The probable error of a mean", Biometrika 6.) Both take the differences as independent and about normal.
The minimum detectable effect is the true difference D at which these n pairs, at this s, give an interval that excludes
zero on the right side with probability `POWER`: P(T' > q) = POWER, T' noncentral t with n - 1 degrees of freedom and
noncentrality D sqrt(n) / s. It is exact where s is the true standard deviation; s is an estimate, so it is one too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

POWER = 0.8
"""Chance with which a minimum detectable effect would be shown: the custom of trial design."""

LEAST_PAIRS = 3
"""The fewest pairs that a verdict is drawn from. Two have one degree of freedom: their noise is one number, the gap between
them, and where the two happen to be alike the interval is narrow whatever the seeds would do. Its 5 % holds for
differences that are exactly normal, which two of them cannot show to be so."""

RESOLUTION = float(np.finfo(np.float32).eps)
"""Relative size of the differences that rounding makes in a float32 loss: less than this is no measure of noise."""

MOST_PAIRS = 10_000
"""Beyond this, the number of pairs needed is not worth stating."""


@dataclass(frozen=True)
class Paired:
    """What n paired differences (candidate - base, nats a token) show at `confidence`.

    difference: their mean, None without pairs. standard_deviation: None below two pairs. interval, p_value,
    minimum_detectable_effect: None below two pairs, and where `constant`. p_value: of this one test, so that a difference
    is shown when it is below 1 - confidence. constant: all differences are the same within rounding, so there is no noise
    to hold them against: the seeds do not change what is measured, and n pairs are one measurement. Then nothing is
    claimed, however large the difference; a zero-width interval would claim certainty.
    """

    pairs: int
    confidence: float
    difference: float | None
    standard_deviation: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    minimum_detectable_effect: float | None
    constant: bool

    @property
    def shown(self) -> bool:
        """Whether the mean differs from zero at this confidence."""
        return self.p_value is not None and self.p_value < 1 - self.confidence


def paired(differences: Sequence[float], confidence: float, scale: float = 0.0) -> Paired:
    """Student's test of paired differences [n], all finite.

    scale: the size of the losses they came from (nats), by which rounding is judged. Raises: ValueError.
    """
    if not all(math.isfinite(difference) for difference in differences):
        raise ValueError("a difference is not finite")
    n = len(differences)
    if n == 0:
        return Paired(0, confidence, None, None, None, None, None, False)
    mean = math.fsum(differences) / n
    if n == 1:
        return Paired(1, confidence, mean, None, None, None, None, False)
    deviation = math.sqrt(math.fsum((difference - mean) ** 2 for difference in differences) / (n - 1))
    if deviation <= RESOLUTION * scale:  # also 0 <= 0
        return Paired(n, confidence, mean, deviation, None, None, None, True)
    error = deviation / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * error
    return Paired(
        pairs=n,
        confidence=confidence,
        difference=mean,
        standard_deviation=deviation,
        interval=(mean - half, mean + half),
        p_value=2 * float(special.stdtr(n - 1, -abs(mean) / error)),
        minimum_detectable_effect=minimum_detectable_effect(deviation, n, confidence),
        constant=False,
    )


@lru_cache(maxsize=4096)
def _detectable(pairs: int, confidence: float, power: float) -> float:
    """The minimum detectable effect in standard deviations of a difference."""
    degrees = pairs - 1
    critical = float(special.stdtrit(degrees, (1 + confidence) / 2))

    def excess(noncentrality: float) -> float:
        return float(stats.nct.sf(critical, degrees, noncentrality)) - power

    beyond = max(1.0, critical)
    while excess(beyond) < 0:
        beyond *= 2
    return float(optimize.brentq(excess, 0.0, beyond, xtol=1e-10)) / math.sqrt(pairs)


def minimum_detectable_effect(
    standard_deviation: float, pairs: int, confidence: float, power: float = POWER
) -> float | None:
    """The smallest true difference (nats, without sign) that `pairs` pairs would show with chance `power`; None below two.

    standard_deviation: of the paired differences, nats.
    """
    if pairs < 2:
        return None
    return standard_deviation * _detectable(pairs, confidence, power)


def pairs_needed(effect: float, standard_deviation: float, confidence: float, power: float = POWER) -> int | None:
    """The fewest pairs that would show a true difference of `effect` (nats) with chance `power`; None beyond MOST_PAIRS.

    standard_deviation: of the paired differences, nats, more than zero; a single look at the end is meant.
    """
    wanted = abs(effect) / standard_deviation
    enough = 2
    while _detectable(enough, confidence, power) > wanted:
        if enough >= MOST_PAIRS:
            return None
        enough = min(2 * enough, MOST_PAIRS)
    short = enough // 2  # too few, unless it is 1
    while enough - short > 1:
        middle = (enough + short) // 2
        if _detectable(middle, confidence, power) > wanted:
            short = middle
        else:
            enough = middle
    return enough
