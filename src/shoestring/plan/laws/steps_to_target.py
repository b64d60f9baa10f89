"""Steps to a loss by batch size, from the gradient noise scale."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Values, place
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="steps_to_target",
    paper="An Empirical Model of Large-Batch Training, arXiv:1812.06162",
    claim="the gradient noise scale predicts the largest useful batch size across many domains",
    cost="runs to one loss at several batch sizes",
)
class StepsToTarget(Law):
    """The steps that a loss takes by batch: S = S_min (1 + B_crit / B).

    McCandlish et al. (2018), arXiv:1812.06162, equation 2.7: (S / S_min - 1) (T / T_min - 1) = 1, where T = S B are the tokens.
    B: tokens of a step. At B_crit a run takes twice the fewest steps and twice the fewest tokens.
    """

    name = "steps_to_target"
    formula = "S = S_min (1 + B_crit / B)"
    target = "steps"
    ladder = "batch"

    def __init__(self) -> None:
        self.columns = ("batch",)
        self.constants = (
            LawConstant("S_min", 1e-6, 1.0, (0.2, 0.9), unit="lowest"),
            place("B_crit", "batch", (0.3, 1.0, 5.0)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        return constants["S_min"] * (1 + constants["B_crit"] / row["batch"])
