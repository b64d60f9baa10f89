"""The law of DiLoCo: the loss of a size and a number of replicas."""

from typing import ClassVar

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import Published, Values, coefficient, exponent, signed
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="diloco",
    paper="Communication-Efficient Language Model Training Scales Reliably and Robustly: Scaling Laws for DiLoCo, arXiv:2503.09799",
    claim="DiLoCo scales predictably with model size, and when well tuned better than data-parallel training",
    cost="sizes and replica counts, each at the same tokens per parameter",
)
class DiLoCoLaw(Law):
    """The loss of a size N on M replicas: L = A N^-alpha M^beta.

    Charles et al. (2025), arXiv:2503.09799, the joint power law of L(N, M) at 20 tokens a parameter. L: nats per token. beta is
    what replicas cost; it may be negative.
    """

    name = "diloco"
    formula = "L = A N^-alpha M^beta"
    ladder = "parameters"
    published: ClassVar[Published] = {"charles": {"A": 19.226, "alpha": 0.0985, "beta": 0.0116}}

    def __init__(self) -> None:
        self.columns = ("parameters", "workers")
        self.constants = (
            coefficient("A", ("parameters", "alpha", -1), ("workers", "beta", 1), starts=(1.0,)),
            exponent("alpha", (0.05, 0.1, 0.3), centre=None),
            signed("beta", -1.0, 1.0, (0.0, 0.05)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        return c["A"] * row["parameters"] ** -c["alpha"] * row["workers"] ** c["beta"]
