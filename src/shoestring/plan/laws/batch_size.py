"""The best batch for an amount of compute or of data."""

from typing import Literal

from shoestring.method import Fraction, method
from shoestring.plan.minima import best_of, parabolas
from shoestring.plan.power_law import PowerLaw
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="batch_size",
    paper="Scaling Law for Language Models Training Considering Batch Size, arXiv:2412.01505",
    claim="the best global batch follows power laws, one of compute and one of the amount of data",
    cost="several batch sizes at each of three levels of compute or data",
)
class BatchSize(PowerLaw):
    """The batch of the lowest loss over compute, or over tokens: B* = A x^alpha.

    Shuai et al. (2024), arXiv:2412.01505. x: FLOPs at their best division, or training tokens. B*: tokens of a step, at the lowest
    point of a parabola of the loss over log B for each x.

    along: x.
    tolerance: relative difference of x that is one level.
    """

    name = "batch_size"
    formula = "B* = A x^alpha"

    def __init__(self, *, along: Literal["compute", "tokens"] = "compute", tolerance: Fraction = 0.1) -> None:
        super().__init__(along, best_of("batch"), with_floor=False, rising=True)
        self.tolerance = tolerance

    def prepare(self, table: RunsTable) -> RunsTable:
        table = table.with_columns(("batch", self.column, "loss"), f"the law '{self.name}'")
        return parabolas(table, "batch", self.column, self.tolerance)
