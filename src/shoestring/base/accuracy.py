"""The share of right answers, and the difference of two models' shares on the same problems, with what chance may make of them.

With one answer a problem, of n problems, the interval of a share is Wilson's (1927, "Probable inference, the law of succession,
and statistical inference"): with q the normal quantile,

    (p + q^2 / 2n +- q sqrt(p (1 - p) / n + q^2 / 4n^2)) / (1 + q^2 / n)

Several answers to one problem are alike, so n is then the number of independent answers of the same precision, p (1 - p) / se^2
with se the standard error over problems, from the number of problems to that of answers (Korn and Graubard, 1998, "Confidence
intervals for proportions with small expected number of positive counts estimated from survey data", who take it for another
interval).

Whether two models differ is tested exactly: under the null hypothesis each problem's difference, in right answers, is as likely
with the other sign, and the chance of a sum at least as far from zero is counted over all signs. With one answer a problem this
is the exact test of McNemar (1947, "Note on the sampling error of the difference between correlated proportions or percentages").
The interval of the difference is Newcombe's tenth (1998, "Improved confidence intervals for the difference between binomial
proportions based on paired data"); of several answers a problem, Student's over problems.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from shoestring.base.interval import CONFIDENCE, Estimate, difference


@dataclass(frozen=True)
class Difference:
    """What two models' answers to the same problems show.

    estimate: the share of right answers less that of the base.
    p_value: of the exact test.
    """

    estimate: Estimate
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether the test tells them apart."""
        return self.p_value < 1 - CONFIDENCE


@dataclass(frozen=True)
class Accuracy:
    """How many answers were right.

    right: [n] of each problem, at least one problem.
    samples: answers to each.
    """

    right: np.ndarray
    samples: int = 1

    @property
    def estimate(self) -> Estimate:
        """The share of right answers."""
        count = len(self.right)
        shares = self.right / self.samples
        share = float(shares.mean())
        independent = float(count)
        if self.samples > 1 and count > 1 and 0 < share < 1:
            error = float(shares.var(ddof=1)) / count
            most = count * self.samples
            independent = min(max(share * (1 - share) / error, count), most) if error else most
        return wilson(share, independent)

    @property
    def any_right(self) -> float:
        """The share of problems with a right answer among theirs."""
        return float((self.right > 0).mean())

    def over(self, base: "Accuracy") -> Difference:
        """The share of right answers less that of `base`, which answered the same problems as often."""
        if len(self.right) != len(base.right) or self.samples != base.samples:
            raise ValueError("the answers are not to the same problems")
        p_value = sign_flips(self.right - base.right)
        if self.samples == 1:
            return Difference(_newcombe(self.right > 0, base.right > 0), p_value)
        each = np.full(len(self.right), float(self.samples))
        return Difference(difference(self.right.astype(float), base.right.astype(float), each), p_value)


def wilson(share: float, count: float) -> Estimate:
    """A share of so many independent answers, with its interval."""
    q2 = float(special.ndtri((1 + CONFIDENCE) / 2)) ** 2
    middle = share + q2 / (2 * count)
    half = math.sqrt(q2 * (share * (1 - share) / count + q2 / (4 * count * count)))
    low, high = (middle - half) / (1 + q2 / count), (middle + half) / (1 + q2 / count)
    return Estimate(share, min(max(low, 0.0), share), max(min(high, 1.0), share))


def sign_flips(differences: np.ndarray) -> float:
    """The chance that |sum| is at least as large if each sign were a coin's throw. differences: [n] whole numbers."""
    sizes = np.abs(differences[differences != 0]).astype(int)
    total = int(sizes.sum())
    chances = np.ones(1)  # of each sum from -reach to reach, at its place
    for size in sizes:
        grown = np.zeros(len(chances) + 2 * size)
        grown[: len(chances)] += chances / 2
        grown[2 * size :] += chances / 2
        chances = grown
    found = int(abs(differences.sum()))
    sums = np.abs(np.arange(-total, total + 1))
    return min(float(chances[sums >= found].sum()), 1.0)


def _newcombe(own: np.ndarray, base: np.ndarray) -> Estimate:
    """The difference of two shares of the same problems. own, base: [n] bool, whether each answer was right."""
    n = len(own)
    both, neither = float((own & base).sum()), float((~own & ~base).sum())
    gained, lost = float((own & ~base).sum()), float((~own & base).sum())
    one, other = wilson(own.mean(), n), wilson(base.mean(), n)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    product = both * neither - gained * lost
    if product > 0:
        product = max(product - n / 2, 0.0)  # his correction for continuity
    phi = product / math.sqrt(margins) if margins else 0.0
    value = (gained - lost) / n
    assert one.low is not None
    assert one.high is not None
    assert other.low is not None
    assert other.high is not None
    down, up = one.value - one.low, one.high - one.value
    other_down, other_up = other.value - other.low, other.high - other.value
    below = math.sqrt(max(down**2 - 2 * phi * down * other_up + other_up**2, 0.0))
    above = math.sqrt(max(up**2 - 2 * phi * up * other_down + other_down**2, 0.0))
    return Estimate(value, value - below, value + above)
