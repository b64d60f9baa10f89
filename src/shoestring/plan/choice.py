"""Which law to trust: the one whose predictions of held-out rungs were the nearest."""

import math
from collections.abc import Sequence

from shoestring.errors import ShoestringError, UsageError
from shoestring.plan.law import Fitted, Law
from shoestring.plan.runs_table import RunsTable


def choose(
    laws: Sequence[tuple[Law, float]], table: RunsTable, *, resamples: int = 100, rungs: int = 5
) -> list[Fitted]:
    """Laws fitted to one table, the one of the least error on held-out rungs first.

    laws: each with the weight of its priors, as `Law.fit` takes it. Those that the table cannot be fitted with are left out. A law
    of another target than the first, or on another scale, is not comparable. Raises: UsageError where none can be fitted.
    """
    target = (laws[0][0].target, laws[0][0].scale)
    fitted, wrong = [], []
    for law, weight in laws:
        if (law.target, law.scale) != target:
            raise UsageError(f"the laws '{laws[0][0].name}' and '{law.name}' do not predict the same on the same scale")
        try:
            fitted.append(law.fit(table, regularise=weight, resamples=resamples, rungs=rungs))
        except ShoestringError as error:
            wrong.append(str(error))
    if not fitted:
        raise UsageError(f"no law can be fitted to these runs: {wrong[0]}")
    return sorted(fitted, key=lambda one: math.inf if math.isnan(one.band.held_out_error) else one.band.held_out_error)
