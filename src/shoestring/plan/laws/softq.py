"""SoftQ: whichever of size and unique data is short sets the loss, softly."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Values, coefficient, exponent, floor
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="softq",
    paper="Data-Constrained Language Model Pretraining: Improved Regularization and Scaling Laws, arXiv:2606.06888",
    claim="fits runs of 72M to 1.4B parameters that pass over their data many times substantially better than laws that add a term "
    "of size and one of data",
    cost="a grid of small runs over sizes and unique data, each trained as long as it helps",
)
class SoftQ(Law):
    """Loss of a size and of unique data, each run trained for as many passes as are best.

        L = E + ((A / N^alpha)^s + (B / U^beta)^s)^(1 / s)

    Zhiwei Xu et al. (2026), arXiv:2606.06888. N: parameters. U: unique tokens. L, E: nats per token. s: how sharply the scarcer of
    the two decides. At s = 1 it is Chinchilla's sum; for a large s the larger term alone counts, as where a model learns pieces of
    knowledge, the quanta, that both its size and its data have room for. So where data is short, size hardly helps.

    The source's own equation was not at hand: this is a soft maximum of the two shortages, as its abstract describes the law. Rows
    that differ only in their passes are to be reduced to the best of them first.
    """

    name = "softq"
    formula = "L = E + ((A / N^alpha)^s + (B / U^beta)^s)^(1 / s)"

    def __init__(self) -> None:
        self.columns = ("parameters", "unique")
        self.constants = (
            floor(),
            coefficient("A", ("parameters", "alpha", -1)),
            coefficient("B", ("unique", "beta", -1)),
            exponent("alpha"),
            exponent("beta"),
            LawConstant("s", 0.3, 30.0, (1.0, 4.0)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        size = c["A"].log() - c["alpha"] * row["parameters"].log()
        data = c["B"].log() - c["beta"] * row["unique"].log()
        both = (c["s"] * size).logaddexp(c["s"] * data) / c["s"]
        return c["E"] + both.exp()
