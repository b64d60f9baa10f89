"""Chinchilla's second approach: the lowest points of loss over size at equal compute."""

from typing import Literal

from shoestring.method import Fraction, method
from shoestring.plan.minima import best_of, parabolas
from shoestring.plan.power_law import PowerLaw
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="chinchilla_isoflop",
    paper="Training Compute-Optimal Large Language Models, arXiv:2203.15556",
    claim="for compute-optimal training, model size and training tokens should be scaled equally",
    cost="several sizes at each of three levels of compute or more",
)
class ChinchillaIsoflop(PowerLaw):
    """The best size for an amount of compute: N* = A C^alpha, fitted to the minima of isoFLOP curves.

    Hoffmann et al. (2022), arXiv:2203.15556, approach 2. For each level of compute C a parabola of the loss over log N is fitted;
    its lowest point is N*. The paper finds alpha = 0.49. Parabolas are skewed by sizes that lie to one side of the minimum.

    tolerance: relative difference of compute that is one level.
    column: what the best of is asked for, 'parameters' or 'tokens'.
    """

    name = "chinchilla_isoflop"
    formula = "N* = A C^alpha"

    def __init__(self, *, tolerance: Fraction = 0.1, column: Literal["parameters", "tokens"] = "parameters") -> None:
        super().__init__("compute", best_of(column), with_floor=False, rising=True)
        self.tolerance, self.best = tolerance, column

    def prepare(self, table: RunsTable) -> RunsTable:
        table = table.with_columns((self.best, "compute", "loss"), f"the law '{self.name}'")
        return parabolas(table, self.best, "compute", self.tolerance)
