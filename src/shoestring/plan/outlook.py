"""What earlier runs say of a plan: the loss to expect, with its interval, of it and of its neighbours, and what to run next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shoestring.errors import UsageError
from shoestring.plan.choice import choose
from shoestring.plan.law import Fitted, Law, Prediction
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.runs_table import RunsTable

Row = Mapping[str, float]

LEAST_RUNS = 6
"""Fewest runs that anything is said from."""

LAWS: tuple[tuple[Law, float], ...] = ((Chinchilla(tied=True), 1.0), (Chinchilla(), 1.0))
"""Laws that the one to trust is chosen from, with the weights of their priors."""


@dataclass(frozen=True)
class Outlook:
    """law: that was chosen. expected: of each of the rows asked for, in their order. narrowing: which of the candidates would
    narrow the first row's interval most, None where there is none. narrowed: the share of its width that would be left."""

    law: Fitted
    expected: tuple[Prediction, ...]
    narrowing: int | None
    narrowed: float


def outlook(table: RunsTable, rows: Sequence[Row], candidates: Sequence[Row] = ()) -> Outlook:
    """Predict the loss of planned runs from earlier ones.

    table: earlier runs on the same text, with parameters, tokens and loss.
    rows: the plan, and others to compare it with; parameters and tokens of each.
    candidates: runs that could be made first.
    Raises: UsageError for fewer than 6 earlier runs.
    """
    if len(table) < LEAST_RUNS:
        raise UsageError(f"{len(table)} runs on this text are too few to predict from: {LEAST_RUNS} at least")
    law = choose(LAWS, table)[0]
    expected = tuple(law.predict(row) for row in rows)
    narrowing, left = narrowest(law, rows[0], candidates) if candidates else (None, 1.0)
    return Outlook(law, expected, narrowing, left)


def narrowest(law: Fitted, row: Row, candidates: Sequence[Row]) -> tuple[int, float]:
    """(the candidate whose loss, once known, narrows the prediction of a row most; the share of the width that is left).

    Resamples of the runs say how predictions of the row and of each candidate vary together. To learn a candidate's loss, give or
    take the deviation s of a run, takes cov(row, candidate)^2 / (var(candidate) + s^2) from the variance of the row.
    """
    drawn = []
    for one in (row, *candidates):
        columns = law.scaled.columns(one)
        with torch.no_grad():
            drawn.append(law.scaled.expected(law.band.draws[:, None], columns)[:, 0])
    values = torch.stack(drawn)
    covariance = torch.cov(values[:, values.isfinite().all(0)])
    noise = law.deviation**2
    before = covariance[0, 0] + noise
    taken = covariance[0, 1:] ** 2 / (covariance.diagonal()[1:] + noise)
    best = int(taken.argmax())
    return best, float(((before - taken[best]) / before).clamp(min=0).sqrt())
