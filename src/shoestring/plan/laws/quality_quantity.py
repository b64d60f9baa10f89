"""The law of filtered data: better text is worth more, and loses its worth when it is repeated."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Values, coefficient
from shoestring.plan.law import Law

MOST_PASSES = 256


@method(
    "plan",
    kind="law",
    name="quality_quantity",
    paper="Scaling Laws for Data Filtering -- Data Curation cannot be Compute Agnostic, arXiv:2404.07177",
    claim="which filter is best depends on compute, as good data lose their utility when repeated",
    cost="runs of one to several passes over each pool of data",
)
class QualityQuantity(Law):
    """The error after passes over a pool of U samples, D in all: y = d + a U^-b prod_j (n_j / n_(j - 1))^(-b_j).

    Goyal et al. (2024), arXiv:2404.07177, equation 4. n_j = min(j U, D): samples seen by the end of pass j. b_j = b 2^(-(j - 1)
    / tau): the utility of the pool halves after tau passes. y: the loss (an error rate there); d: what remains. Differs: b is
    above 0 here.

    A mixture of pools has the mean of their utilities, each with its half-life times the number of pools: `mixed`.
    """

    name = "quality_quantity"
    formula = "y = d + a U^-b prod_j (n_j / n_(j - 1))^(-b 2^(-(j - 1) / tau))"

    def __init__(self) -> None:
        self.columns = ("unique", "tokens")
        self.constants = (
            LawConstant("d", 1e-3, 1.0, (0.3, 0.8), unit="lowest"),
            coefficient("a", ("tokens", "b", -1), starts=(0.1, 0.5)),
            LawConstant("b", 1e-3, 2.0, (0.1, 0.4)),
            LawConstant("tau", 0.1, 100.0, (1.0, 5.0)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c, pool, seen = constants, row["unique"], row["tokens"]
        gained = torch.minimum(pool, seen).log()  # of the first pass, which may not be whole
        for again in range(2, min(MOST_PASSES, math.ceil(float((seen / pool).max()) - 1e-9)) + 1):
            more = (torch.minimum(again * pool, seen) / ((again - 1) * pool)).clamp(min=1).log()
            gained = gained + (-(again - 1) / c["tau"]).exp2() * more
        return c["d"] + c["a"] * (-c["b"] * gained).exp()


def mixed(pools: Sequence[Mapping[str, float]], passes: int) -> float:
    """The utility of an even mixture of pools in its pass number `passes`, from the constants b and tau of each alone.

    Samples of each come up as seldom as there are pools, so half-lives grow by their number.
    """
    count = len(pools)
    return sum(pool["b"] * 2 ** (-(passes - 1) / (pool["tau"] * count)) for pool in pools) / count
