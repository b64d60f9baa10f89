"""The best runs for their compute: on the lower envelope of all curves, or at the lowest points of parabolas."""

import itertools
import math

import numpy as np

from shoestring.errors import UsageError
from shoestring.plan.runs_table import Column, RunsTable

LEAST_MINIMA = 3
"""Fewest minima that a power law is fitted to."""


def best_of(column: str) -> str:
    """The name of the column of a minimum's place: the best value of `column`."""
    return f"best_{column}"


def envelope(table: RunsTable, column: str, level: str, bins: int) -> RunsTable:
    """The runs of the lowest loss within each of `bins` equal parts of the logarithm of `level`, where losses still fall.

    A part whose lowest loss is not below those of all parts before is left out, and so is one whose best run is the smallest
    or the largest of all in `column`: the true minimum may lie beyond. Raises: UsageError for fewer than 3 minima.
    """
    levels, values, losses = (np.asarray(table.column(name)) for name in (level, column, "loss"))
    edges = np.geomspace(levels.min(), levels.max() * (1 + 1e-9), bins + 1)
    chosen, lowest = [], math.inf
    for low, high in itertools.pairwise(edges):
        inside = np.flatnonzero((levels >= low) & (levels < high))
        if not len(inside):
            continue
        at = int(inside[losses[inside].argmin()])
        if losses[at] < lowest:
            lowest = float(losses[at])
            if values.min() < values[at] < values.max():
                chosen.append(at)
    return _table([(levels[at], values[at], losses[at]) for at in chosen], column, level)


def parabolas(table: RunsTable, column: str, level: str, tolerance: float) -> RunsTable:
    """The lowest points of parabolas of the loss over the logarithm of `column`, one for each group of equal `level`.

    tolerance: relative difference of levels that are one group. Groups of fewer than 3 values, without a minimum, or with one
    beyond their values by more than a factor of 2, are left out. Raises: UsageError for fewer than 3 minima.
    """
    levels, values, losses = (np.asarray(table.column(name)) for name in (level, column, "loss"))
    found = []
    for group in _groups(levels, tolerance):
        x, y = np.log(values[group]), losses[group]
        if len(np.unique(x)) < 3:
            continue
        middle = x.mean()
        square, slope, constant = np.polyfit(x - middle, y, 2)
        if square <= 0:
            continue
        lowest = middle - slope / (2 * square)
        if x.min() - math.log(2) <= lowest <= x.max() + math.log(2):
            here = float(np.exp(np.log(levels[group]).mean()))
            found.append((here, math.exp(lowest), constant - slope**2 / (4 * square)))
    return _table(found, column, level)


def _groups(levels: Column, tolerance: float) -> list[Column]:
    order = np.argsort(levels)
    groups: list[list[int]] = []
    for at in order:
        if groups and levels[at] <= levels[groups[-1][0]] * (1 + tolerance):
            groups[-1].append(int(at))
        else:
            groups.append([int(at)])
    return [np.array(group) for group in groups]


def _table(rows: list[tuple[float, float, float]], column: str, level: str) -> RunsTable:
    if len(rows) < LEAST_MINIMA:
        raise UsageError(
            f"{len(rows)} minima of the loss over {column} are too few for a law: {LEAST_MINIMA} levels of {level} with a "
            "minimum at least"
        )
    return RunsTable.of([{level: a, best_of(column): b, "loss": c} for a, b, c in rows])
