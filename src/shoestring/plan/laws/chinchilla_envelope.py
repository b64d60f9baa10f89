"""Chinchilla's first approach: the best run of all curves for each amount of compute."""

from typing import Literal

from shoestring.method import Count, method
from shoestring.plan.minima import best_of, envelope
from shoestring.plan.power_law import PowerLaw
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="chinchilla_envelope",
    paper="Training Compute-Optimal Large Language Models, arXiv:2203.15556",
    claim="for compute-optimal training, model size and training tokens should be scaled equally",
    cost="training curves of several sizes, each with its own schedule's end",
)
class ChinchillaEnvelope(PowerLaw):
    """The best size for an amount of compute: N* = A C^alpha, fitted to the lower envelope of training curves.

    Hoffmann et al. (2022), arXiv:2203.15556, approach 1. Rows are runs, or points of their curves. Of each part of the compute
    axis the row of the lowest loss gives N*. The paper finds alpha = 0.50.

    bins: parts of the logarithm of compute; the paper has 1500, of smoothed curves.
    column: what the best of is asked for.
    """

    name = "chinchilla_envelope"
    formula = "N* = A C^alpha"

    def __init__(self, *, bins: Count = 30, column: Literal["parameters", "tokens"] = "parameters") -> None:
        super().__init__("compute", best_of(column), with_floor=False, rising=True)
        self.bins, self.best = bins, column

    def prepare(self, table: RunsTable) -> RunsTable:
        table = table.with_columns((self.best, "compute", "loss"), f"the law '{self.name}'")
        return envelope(table, self.best, "compute", self.bins)
