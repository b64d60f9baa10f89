"""How much compute a mixture of experts saves beside a dense model of the same loss."""

from typing import ClassVar

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Published, Values, signed
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="efficiency_leverage",
    paper="Towards Greater Leverage: Scaling Laws for Efficient Mixture-of-Experts Language Models, arXiv:2507.17702",
    claim="the leverage follows power laws of activation ratio and compute, with an optimal range of expert granularity",
    cost="pairs of dense and sparse runs of the same loss",
)
class EfficiencyLeverage(Law):
    """The compute of a dense model over that of a mixture of experts of the same loss.

        EL = Â^(a + d log C + g (log G)^2 + b log G),    1 / Â = 1 / (A + 1 / (1 / A_start - 1 / A_max)) + 1 / A_max

    Tian et al. (2025), arXiv:2507.17702. A: share of the experts that a token passes through. G: granularity, 2 widths over an
    expert's width. C: FLOPs of training. Logarithms are of base 10. A_max is so large that Â = A + A_start.
    """

    name = "efficiency_leverage"
    formula = "EL = (A + A_start)^(a + d log C + g (log G)^2 + b log G)"
    target = "leverage"
    published: ClassVar[Published] = {
        "ling": {"a": 1.23, "d": -7.61e-2, "g": 1.67e-2, "b": -1.17e-1, "A_start": 1.63e-2}
    }

    def __init__(self) -> None:
        self.columns = ("activation_ratio", "granularity", "compute")
        self.constants = (
            signed("a", -5.0, 5.0, (0.0, 1.0)),
            signed("d", -1.0, 1.0, (-0.08, 0.0)),
            signed("g", -1.0, 1.0, (0.0, 0.02)),
            signed("b", -1.0, 1.0, (-0.1, 0.0)),
            LawConstant("A_start", 1e-4, 0.5, (0.005, 0.05)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c, grain = constants, row["granularity"].log10()
        power = c["a"] + c["d"] * row["compute"].log10() + c["g"] * grain**2 + c["b"] * grain
        return (row["activation_ratio"] + c["A_start"]) ** power
