"""The law of the capacity gap: how large a teacher a student learns best from."""

from typing import ClassVar

from torch import Tensor

from shoestring.method import Fraction, method
from shoestring.plan.formula import LawConstant, Published, Values
from shoestring.plan.law import Law
from shoestring.plan.minima import best_of, parabolas
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="capacity_gap",
    paper="Towards the Law of Capacity Gap in Distilling Language Models, arXiv:2311.07052",
    claim="over students below 3 B, the best teacher is 2.5 times as large; it held for a student of 3 B",
    cost="students of three sizes or more, each taught by three teachers or more",
)
class CapacityGap(Law):
    """The size of the teacher that a student of a size learns best from: T* = r S.

    Zhang et al. (2023), arXiv:2311.07052. S: parameters of the student. T*: of the teacher. For each student size a parabola of the
    loss over log T is fitted; its lowest point is T*. A table has the student's 'parameters', the 'teacher_parameters' and 'loss'.
    The paper's students are pruned from their teachers. What a larger teacher costs to ask is not in the law: see `distillation`.
    Differs: the paper reads the best teacher off those that were tried.

    tolerance: relative difference of student sizes that are one.
    """

    name = "capacity_gap"
    formula = "T* = r S"
    target = best_of("teacher_parameters")
    ladder = "parameters"
    published: ClassVar[Published] = {"zhang": {"r": 2.5}}

    def __init__(self, *, tolerance: Fraction = 0.1) -> None:
        self.columns, self.tolerance = ("parameters",), tolerance
        self.constants = (LawConstant("r", 0.1, 1000.0, (1.5, 4.0, 20.0)),)

    def prepare(self, table: RunsTable) -> RunsTable:
        table = table.with_columns(("parameters", "teacher_parameters", "loss"), f"the law '{self.name}'")
        return parabolas(table, "teacher_parameters", "parameters", self.tolerance)

    def expected(self, constants: Values, row: Values) -> Tensor:
        return constants["r"] * row["parameters"]
