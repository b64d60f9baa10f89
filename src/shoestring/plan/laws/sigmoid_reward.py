"""The sigmoid of reward over compute of reinforcement learning."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Values, place, signed
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="sigmoid_reward",
    paper="The Art of Scaling Reinforcement Learning Compute for LLMs, arXiv:2510.13786",
    claim="reward over compute follows a sigmoid, so that large runs are predictable from small ones",
    cost="the first part of a run's validation curve",
)
class SigmoidReward(Law):
    """The validation reward over compute: R = R_0 + (A - R_0) / (1 + (C_mid / C)^B).

    Khatri et al. (2025), arXiv:2510.13786, equation 1. R_0: before any training. A: the asymptote. C_mid: compute at half of
    the gain.
    B: how steep. Recipes differ in A, and details of them mostly in B and C_mid.
    """

    name = "sigmoid_reward"
    formula = "R = R_0 + (A - R_0) / (1 + (C_mid / C)^B)"
    target = "reward"
    scale = "linear"

    def __init__(self) -> None:
        self.columns = ("compute",)
        self.constants = (
            signed("R_0", -1.0, 1.0, (0.0, 0.3)),
            signed("A", 0.0, 1.0, (0.5, 0.8)),
            place("C_mid", "compute", (0.3, 1.0, 5.0)),
            LawConstant("B", 0.1, 10.0, (0.5, 1.0, 2.0)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        return c["R_0"] + (c["A"] - c["R_0"]) / (1 + (c["C_mid"] / row["compute"]) ** c["B"])
