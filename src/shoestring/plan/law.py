"""The contract of a law, and what a fit of it says: constants with intervals, predictions with intervals, and doubts.

A law is one class in one file of `plan/laws/`, with a card of kind 'law'. It names its columns, its constants with bounds and
starts, and its formula. It has no fitting code: `Law.fit` is the engine's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoestring.plan import fit, intervals
from shoestring.plan.formula import Formula
from shoestring.plan.intervals import FitSettings
from shoestring.plan.runs_table import Column, RunsTable
from shoestring.plan.scaled import Scaled

AT_BOUND = 1e-6


class Prediction(NamedTuple):
    """value: expected. low, high: of the interval that a new run is to lie in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """A law that is fitted to runs.

    constants: the best.
    residuals: [rows], measured less expected, on the law's scale. deviation: their robust standard deviation.
    convergence: the starts of the search. doubts: what to know before trusting it, a line each.
    """

    law: "Law"
    rows: RunsTable
    settings: FitSettings
    constants: Mapping[str, float]
    residuals: Column
    deviation: float
    convergence: fit.Descent
    doubts: tuple[str, ...]
    scaled: Scaled
    solution: intervals.Solution
    band: intervals.Band

    @cached_property
    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """Of each constant, by name: fitted when they are first asked for."""
        with torch.no_grad():
            return intervals.profiles(self.scaled, self.solution, self.settings)

    def predict(self, row: Mapping[str, float]) -> Prediction:
        """A new run, with the interval that it lies in. Raises: UsageError where a column is missing."""
        columns = self.scaled.columns(row)
        return self._predictions(columns)[0]

    def predict_all(self, table: RunsTable) -> list[Prediction]:
        """Many new runs. Raises: UsageError where a column or a number is missing."""
        table = table.with_columns(self.law.columns, f"the law '{self.law.name}'")
        return self._predictions(
            {name: torch.as_tensor(table.column(name), dtype=torch.float64) for name in self.law.columns}
        )

    def _predictions(self, columns: Mapping[str, Tensor]) -> list[Prediction]:
        value, width = self.band.at(self.scaled, self.solution, columns)
        ends = torch.stack([value, value - width, value + width], dim=1)
        if self.law.scale == "log":
            ends = ends.exp()
        return [Prediction(*(float(v) for v in row)) for row in ends]

    @property
    def stopped_early(self) -> bool:
        """Whether the search ended where the error still falls."""
        return bool(self.convergence.stopped_early[self.convergence.best()])

    def describe(self) -> str:
        """The law and its intervals, a line for each constant, and what to doubt."""
        lines = [f"{self.law.formula}, {len(self.rows)} rows, {self.settings.confidence:.0%} intervals"]
        for name, (low, high) in self.intervals.items():
            lines.append(f"  {name:10} {self.constants[name]:.4g}  ({low:.4g} to {high:.4g})")
        unit = "{:.2%}" if self.law.scale == "log" else "{:.4g}"
        lines.append(f"  {self.law.target} lies {unit.format(self.deviation)} about it")
        return "\n".join([*lines, *(f"  {doubt}" for doubt in self.doubts)])


class Law(Formula):
    """A formula that can be fitted. Options of a law are keyword-only parameters of its constructor."""

    def fit(
        self,
        table: RunsTable,
        *,
        confidence: float = 0.9,
        regularise: float = 0.0,
        delta: float | None = None,
        resamples: int = 100,
        rungs: int = 5,
        seed: int = 0,
        most_steps: int = 400,
    ) -> Fitted:
        """Fit to runs, with an interval for every constant and for every prediction.

        confidence: of the intervals.
        regularise: weight of the priors of constants, 1: as they stand; 0: a free fit.
        delta: beyond which a residual counts by its size alone, so that an outlier pulls little; None: 1.345 deviations.
        resamples: of the runs, for the width of predictions.
        rungs: of the ladder that are held out in turn, from the top, for how wrong predictions of larger runs are. 0: none.
        most_steps: of the search; one that is cut off is told in the doubts.
        Raises: UsageError for a missing column, or fewer rows than the law has constants and one more.
        """
        settings = FitSettings(confidence, regularise, delta, resamples, rungs, seed, most_steps)
        rows = self.prepare(table)
        scaled = Scaled(self, rows)
        with torch.no_grad():
            solution = intervals.solve(scaled, settings)
            band = intervals.band(scaled, solution, settings)
        best = solution.best
        residuals = (scaled.targets - scaled.expected(best[None, None])[0]).numpy()
        return Fitted(
            law=self,
            rows=rows,
            settings=settings,
            constants=scaled.named(best),
            residuals=residuals,
            deviation=solution.deviation,
            convergence=solution.search,
            doubts=tuple(_doubts(scaled, solution, band, residuals)),
            scaled=scaled,
            solution=solution,
            band=band,
        )


def _doubts(scaled: Scaled, solution: intervals.Solution, band: intervals.Band, residuals: Column) -> Sequence[str]:
    search, names, doubts = solution.search, scaled.formula.names, []
    if bool(search.stopped_early[search.best()]):
        doubts.append(
            f"the search stopped early: the error still falls (cosine {float(search.slopes[search.best()]):.2g})"
        )
    if len(search.errors) > 2 and search.agreeing() < 2:
        doubts.append(f"only one of {len(search.errors)} starts reached the lowest error")
    at_end = (solution.best - scaled.low < AT_BOUND) | (scaled.high - solution.best < AT_BOUND)
    doubts += [
        f"{name} is at the end of its range: these runs do not determine it"
        for name, ended in zip(names, at_end, strict=True)
        if bool(ended)
    ]
    outliers = np.flatnonzero(np.abs(residuals) > 5 * solution.deviation)
    if len(outliers) and solution.deviation > 1e-9:
        worst = [scaled.rows.names[at] for at in outliers[np.argsort(-np.abs(residuals[outliers]))][:3]]
        doubts.append(f"{len(outliers)} runs lie beyond 5 deviations and count little: {', '.join(worst)} ...")
    if not band.held_out:
        doubts.append(
            "too few rungs to hold any out: intervals rest on residuals alone, and may be narrow beyond the runs"
        )
    return doubts
