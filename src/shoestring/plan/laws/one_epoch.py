"""The power law of training on fresh text only."""

import numpy as np

from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.plan.power_law import PowerLaw
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="one_epoch",
    paper="One Epoch Is All You Need, arXiv:1906.06669",
    claim="the curve of test loss over iterations of one-epoch training follows a power law; no overfitting occurs",
    cost="a training curve of one size without repeated text",
)
class OneEpoch(PowerLaw):
    """The loss of one size over the tokens of a single pass: L = A / D^alpha.

    Komatsuzaki (2019), arXiv:1906.06669. D: tokens, none seen twice; iterations there, of one batch. L: nats per token. Runs that
    repeat text, where the table tells, are refused: the law does not hold for them.
    """

    name = "one_epoch"
    formula = "L = A / D^alpha"

    def __init__(self) -> None:
        super().__init__("tokens", with_floor=False)

    def prepare(self, table: RunsTable) -> RunsTable:
        rows = super().prepare(table)
        if table.has("unique"):
            again = np.flatnonzero(table.column("tokens") > table.column("unique") * 1.0001)
            if len(again):
                raise UsageError(
                    f"the law '{self.name}' is of fresh text only, and {table.names[again[0]]} repeats its text: leave such runs "
                    "out, or take 'data_constrained'"
                )
        return rows
