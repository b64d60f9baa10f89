"""Regions of steps to a loss by batch size: perfect scaling, diminishing returns, maximal data parallelism."""

from typing import Literal

import numpy as np
from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Values, place
from shoestring.plan.law import Fitted, Law
from shoestring.plan.runs_table import RunsTable

Region = Literal["perfect scaling", "diminishing returns", "maximal data parallelism"]


@method(
    "plan",
    kind="law",
    name="data_parallelism",
    paper="Measuring the Effects of Data Parallelism on Neural Network Training, arXiv:1811.03600",
    claim="steps to a goal fall in proportion to the batch, then less, then not at all; where, differs greatly between workloads",
    cost="runs to one loss at several batch sizes, each with its own best learning rate",
)
class DataParallelism(Law):
    """The steps that a loss takes by batch, with a bend of any sharpness: S = S_min (1 + (B_c / B)^p)^(1 / p).

    Shallue et al. (2019), arXiv:1811.03600, measure such curves and print no formula. This one falls as 1 / B for small batches
    and is flat for large ones, as theirs do; p = 1 is the law 'steps_to_target'. Of rows of one batch size only the fewest
    steps
    count: those of the best learning rate. B: tokens of a step. B_c: where the two straight lines meet.
    """

    name = "data_parallelism"
    formula = "S = S_min (1 + (B_c / B)^p)^(1 / p)"
    target = "steps"
    ladder = "batch"

    def __init__(self) -> None:
        self.columns = ("batch",)
        self.constants = (
            LawConstant("S_min", 1e-6, 1.0, (0.3, 0.9), unit="lowest"),
            place("B_c", "batch", (0.3, 1.0, 3.0)),
            LawConstant("p", 0.2, 10.0, (0.7, 1.0, 2.0)),
        )

    def prepare(self, table: RunsTable) -> RunsTable:
        rows = super().prepare(table)
        batches, steps = rows.column("batch"), rows.column("steps")
        fewest = [int(np.flatnonzero(batches == b)[steps[batches == b].argmin()]) for b in np.unique(batches)]
        return rows.select(fewest)

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        return c["S_min"] * (1 + (c["B_c"] / row["batch"]) ** c["p"]) ** (1 / c["p"])


def region(fitted: Fitted, batch: float, edge: float = 0.1) -> Region:
    """Where a batch lies: by how much of a doubling of the batch the steps fall by.

    edge: the share at which a region ends; within 10 % of a full halving is perfect scaling.
    """
    ratio = (fitted.constants["B_c"] / batch) ** fitted.constants["p"]
    falls = ratio / (1 + ratio)  # -d log S / d log B
    if falls >= 1 - edge:
        return "perfect scaling"
    return "maximal data parallelism" if falls <= edge else "diminishing returns"
