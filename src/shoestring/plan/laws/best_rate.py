"""The best learning rate for a number of training tokens."""

from shoestring.method import Fraction, method
from shoestring.plan.minima import best_of, parabolas
from shoestring.plan.power_law import PowerLaw
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="best_rate",
    paper="Scaling Optimal LR Across Token Horizons, arXiv:2409.19913",
    claim="longer training needs a smaller learning rate, by a scaling law that tells it of long runs from short ones",
    cost="several learning rates at each of three numbers of tokens",
)
class BestRate(PowerLaw):
    """The peak learning rate of the lowest loss over training tokens: R* = A / D^alpha.

    Bjorck et al. (2024), arXiv:2409.19913. D: training tokens. R*: the lowest point of a parabola of the loss over log R for each
    D, all else alike. Differs: the paper's joint law, in which R* falls with the size of the model too, is left out.

    tolerance: relative difference of D that is one level.
    """

    name = "best_rate"
    formula = "R* = A / D^alpha"

    def __init__(self, *, tolerance: Fraction = 0.1) -> None:
        super().__init__("tokens", best_of("learning_rate"), with_floor=False)
        self.tolerance = tolerance

    def prepare(self, table: RunsTable) -> RunsTable:
        table = table.with_columns(("learning_rate", "tokens", "loss"), f"the law '{self.name}'")
        return parabolas(table, "learning_rate", "tokens", self.tolerance)
