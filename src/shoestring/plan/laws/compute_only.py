"""The law of compute alone: how it is divided between size and data does not matter."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import Values, signed
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="compute_only",
    paper="More Compute Is What You Need, arXiv:2404.19484",
    claim="performance depends mostly on the compute spent, independent of its allocation to model size and data",
    cost="a ladder of small runs",
)
class ComputeOnly(Law):
    """The loss of an amount of compute, straight in its logarithm: L = b - a log10(C).

    Guo (2024), arXiv:2404.19484. C: FLOPs of training. L: nats per token (bits per character there). It is the simplest law that
    others are to beat: where its held-out error is no larger than theirs, the size may be chosen for the cost of serving.
    """

    name = "compute_only"
    formula = "L = b - a log10(C)"
    scale = "linear"

    def __init__(self) -> None:
        self.columns = ("compute",)
        self.constants = (signed("a", -10.0, 10.0, (0.1, 0.5)), signed("b", -200.0, 200.0, (5.0, 12.0)))

    def expected(self, constants: Values, row: Values) -> Tensor:
        return constants["b"] - constants["a"] * row["compute"].log10()
