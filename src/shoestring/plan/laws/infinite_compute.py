"""What fixed data would give for endless compute: the asymptote over size, and over the members of an ensemble."""

from typing import Literal

import numpy as np

from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.plan.power_law import PowerLaw
from shoestring.plan.runs_table import RunsTable


@method(
    "plan",
    kind="law",
    name="infinite_compute",
    paper="Pre-training under infinite compute, arXiv:2509.14786",
    claim="with much stronger weight decay the loss falls as a power law of size, so that recipes can be judged by its asymptote; "
    "ensembles reach a lower one",
    cost="sizes and ensembles on one corpus, each with its best weight decay",
)
class InfiniteCompute(PowerLaw):
    """The loss of a fixed corpus over size or members: L = E + A / x^alpha, of which E is the recipe's asymptote.

    Kim et al. (2025), arXiv:2509.14786. x: parameters, members of an ensemble or unique tokens. Of rows that are alike in x
    (and in size, for members) only the lowest loss counts: that of the best weight decay and number of passes. With `then` the
    limit is taken twice, as there: the asymptote over members of each size, and of these the asymptote over sizes.

    along: x.
    then: 'members' fits the members of each size first and takes their asymptotes in place of losses.
    """

    name = "infinite_compute"
    formula = "L = E + A / x^alpha"

    def __init__(
        self, *, along: Literal["parameters", "members", "unique"] = "parameters", then: Literal["", "members"] = ""
    ) -> None:
        super().__init__(along)
        self.along, self.then = along, then

    def prepare(self, table: RunsTable) -> RunsTable:
        table = super().prepare(table)
        if not self.then:
            keys = ("parameters", "members") if self.along == "members" and table.has("parameters") else (self.along,)
            return _lowest(table, keys)
        table = table.with_columns((self.then,), f"the law '{self.name}'")
        rows, inner = [], PowerLaw(self.then)
        for value in np.unique(table.column(self.along)):
            group = _lowest(table.select(table.column(self.along) == value), (self.then,))
            if len(group) < 4:
                raise UsageError(
                    f"the law '{self.name}' needs 4 numbers of {self.then} at each of {self.along}, and {value:g} has {len(group)}"
                )
            fitted = inner.fit(group, resamples=2, rungs=0)
            rows.append({self.along: float(value), "loss": fitted.constants["E"]})
        return RunsTable.of(rows)


def _lowest(table: RunsTable, keys: tuple[str, ...]) -> RunsTable:
    """The run of the lowest loss of all that are alike in the keys."""
    best: dict[tuple[float, ...], int] = {}
    losses = table.column("loss")
    for at, key in enumerate(zip(*(table.column(name) for name in keys), strict=True)):
        if key not in best or losses[at] < losses[best[key]]:
            best[key] = at
    return table.select(sorted(best.values()))
