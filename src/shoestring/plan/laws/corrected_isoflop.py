"""The best size for some compute, with the corrections that reconcile Kaplan's law and Chinchilla's."""

import numpy as np

from shoestring.errors import UsageError
from shoestring.method import Fraction, method
from shoestring.plan.minima import best_of, parabolas
from shoestring.plan.power_law import PowerLaw
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="corrected_isoflop",
    paper="Resolving Discrepancies in Compute-Optimal Scaling of Language Models, arXiv:2406.19146",
    claim="last-layer compute, warm-up length and scale-dependent tuning explain why the two laws differ; corrected, they agree",
    cost="several sizes at each of three levels of compute or more",
)
class CorrectedIsoflop(PowerLaw):
    """The best size without embeddings for an amount of compute: N* = A C^alpha, from isoFLOP minima, with each correction.

    Porian et al. (2024), arXiv:2406.19146. Without corrections alpha comes out near Kaplan's 0.88, with all of them near
    Chinchilla's 0.5.
    Differs: runs that were made are corrected as far as they can be. The paper trains them again.

    head: count the last layer's operations, 6 (N + width x vocabulary) D; else C = 6 N D, as Kaplan did. Columns: body, tokens,
        and vocabulary_parameters where the head is counted.
    most_warmup: share of the steps; runs that warm up for longer are left out, where the table has 'warmup' and 'steps'. The
        paper warms up for as many tokens as the model has parameters.
    best_rates: of runs alike in size and tokens only the best counts: each size has the rate and batch that suit it.
    tolerance: relative difference of compute that is one level.
    """

    name = "corrected_isoflop"
    formula = "N* = A C^alpha"

    def __init__(
        self, *, head: bool = True, most_warmup: Fraction = 0.2, best_rates: bool = True, tolerance: Fraction = 0.1
    ) -> None:
        super().__init__("compute", best_of("body"), with_floor=False, rising=True)
        self.head, self.most_warmup, self.best_rates, self.tolerance = head, most_warmup, best_rates, tolerance

    def prepare(self, table: RunsTable) -> RunsTable:
        needed = ("body", "tokens", "loss", *(("vocabulary_parameters",) if self.head else ()))
        table = table.with_columns(needed, f"the law '{self.name}'")
        if table.has("warmup") and table.has("steps"):
            table = table.select(table.column("warmup") <= self.most_warmup * table.column("steps"))
            if not len(table):
                raise UsageError(f"every run warms up for more than {self.most_warmup:.0%} of its steps")
        counted = table.column("body") + (table.column("vocabulary_parameters") if self.head else 0)
        table = table.adding("compute", 6 * counted * table.column("tokens"))
        if self.best_rates:
            table = table.select(_best(table))
        return parabolas(table, "body", "compute", self.tolerance)


def _best(table: RunsTable) -> list[int]:
    """Of runs alike in size and tokens, those of the lowest loss."""
    keys = np.stack([table.column("body"), table.column("tokens")], axis=1)
    losses = table.column("loss")
    groups = [np.flatnonzero((keys == key).all(1)) for key in np.unique(keys, axis=0)]
    return [int(group[losses[group].argmin()]) for group in groups]
