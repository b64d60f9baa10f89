"""Chinchilla's parametric law of parameters and tokens, with or without one exponent for both."""

from typing import ClassVar

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import Published, Values, coefficient, exponent, floor
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="chinchilla",
    paper="Training Compute-Optimal Large Language Models, arXiv:2203.15556",
    claim="for compute-optimal training, model size and training tokens should be scaled equally",
    cost="a grid of small runs; the fit takes seconds",
)
class Chinchilla(Law):
    """The loss of a size and a number of tokens: L(N, D) = E + A / N^alpha + B / D^beta.

    Hoffmann et al. (2022), arXiv:2203.15556, approach 3. N: parameters. D: training tokens. L, E: nats per token. E is what
    remains for endless size and data. The best size for C FLOPs grows as C^(beta / (alpha + beta)), where C ~ N D.
    Differs: delta of Huber's loss is set by the residuals unless given (the paper has 1e-3), and their sum is minimised by
    Levenberg-Marquardt steps in place of L-BFGS.

    tied: one exponent for both, beta = alpha. It costs one constant less, and extrapolates better from few cheap runs.
    """

    name = "chinchilla"
    formula = "L = E + A / N^alpha + B / D^beta"
    published: ClassVar[Published] = {
        "hoffmann": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},  # arXiv:2203.15556, equation 10
        "besiroglu": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},  # arXiv:2404.10102
    }

    def __init__(self, *, tied: bool = False) -> None:
        self.tied = tied
        self.columns = ("parameters", "tokens")
        beta = "alpha" if tied else "beta"
        self.constants = (
            floor(),
            coefficient("A", ("parameters", "alpha", -1)),
            coefficient("B", ("tokens", beta, -1)),
            exponent("alpha"),
            *(() if tied else (exponent("beta"),)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        beta = c["alpha"] if self.tied else c["beta"]
        return c["E"] + c["A"] * row["parameters"] ** -c["alpha"] + c["B"] * row["tokens"] ** -beta
