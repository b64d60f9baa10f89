"""The power law of a ladder of models that all have the same tokens per parameter."""

from typing import ClassVar

import numpy as np

from shoestring.errors import UsageError
from shoestring.method import Positive, method
from shoestring.plan.formula import Published
from shoestring.plan.law import Fitted
from shoestring.plan.power_law import PowerLaw
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="cerebras_ladder",
    paper="Cerebras-GPT: Open Compute-Optimal Language Models Trained on the Cerebras Wafer-Scale Cluster, arXiv:2304.03208",
    claim="compute-optimal models from 111M to 13B parameters follow a predictable power law of compute",
    cost="one run a size, at the same tokens per parameter",
)
class CerebrasLadder(PowerLaw):
    """The loss over compute of runs on one ladder: L = E + A / C^alpha.

    Dey et al. (2023), arXiv:2304.03208: L = (C / 5.984e22)^-0.0737 + 0.5066 on the Pile, at 20 tokens a parameter.
    A = 5.984e22^alpha. C:
    FLOPs. L: nats per token. The ladder's rates are to come from muP (`schedule.transfer`), or the line bends.

    ratio: tokens per parameter of the ladder; other runs are left out.
    within: factor around the ratio that still counts.
    """

    name = "cerebras_ladder"
    formula = "L = E + A / C^alpha"
    published: ClassVar[Published] = {"pile": {"E": 0.5066, "A": 5.984e22**0.0737, "alpha": 0.0737}}

    def __init__(self, *, ratio: Positive = 20.0, within: Positive = 1.25) -> None:
        super().__init__("compute")
        self.ratio, self.within = ratio, within

    def prepare(self, table: RunsTable) -> RunsTable:
        table = table.with_columns(("parameters", "tokens", "compute", "loss"), f"the law '{self.name}'")
        away = np.abs(np.log(table.column("tokens") / table.column("parameters") / self.ratio))
        rows = table.select(away <= np.log(self.within) + 1e-9)
        if not len(rows):
            raise UsageError(f"no run has {self.ratio:g} tokens a parameter, give or take a factor of {self.within:g}")
        return rows


def off_the_line(fitted: Fitted, table: RunsTable) -> list[str]:
    """The names of runs whose loss is above the interval that the ladder predicts: something went wrong with them."""
    rows = fitted.law.prepare(table)
    predictions = fitted.predict_all(rows)
    return [
        name for name, loss, said in zip(rows.names, rows.column("loss"), predictions, strict=True) if loss > said.high
    ]
