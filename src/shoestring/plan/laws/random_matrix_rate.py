"""The largest learning rate by batch, from random-matrix theory of the batch's Hessian."""

from typing import Literal

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import Values, coefficient, place
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="random_matrix_rate",
    paper="Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training, "
    "arXiv:2006.09092",
    claim="the maximal learning rate grows linearly with the batch for SGD, and with its square root for Adam",
    cost="the largest stable rate at several batch sizes",
)
class RandomMatrixRate(Law):
    """The largest stable learning rate of a batch B: R = R_max x for SGD, R_max sqrt(x) for Adam, x = B / (B + B_0).

    Granziol et al. (2022), arXiv:2006.09092. The largest eigenvalue of a batch's Hessian lies above that of the whole by noise
    that falls as 1 / B: lambda_B = lambda + v / (lambda B), and the largest stable rate of SGD is 2 / lambda_B. So R_max = 2 /
    lambda and B_0 = v / lambda^2: for B far below B_0 the rate is linear in B, or its square root, and for B far above it no
    longer grows. B: tokens of a step, or any other unit. `plan.spectrum` measures lambda on a model.

    optimiser: 'sgd' or 'adam'.
    """

    name = "random_matrix_rate"
    formula = "R = R_max (B / (B + B_0))^(1 or 1/2)"
    target = "learning_rate"
    ladder = "batch"

    def __init__(self, *, optimiser: Literal["sgd", "adam"] = "adam") -> None:
        self.power = 1.0 if optimiser == "sgd" else 0.5
        self.columns = ("batch",)
        self.constants = (
            coefficient("R_max", starts=(1.0, 3.0)),
            place("B_0", "batch", (0.3, 1.0, 5.0)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        return c["R_max"] * (row["batch"] / (row["batch"] + c["B_0"])) ** self.power
