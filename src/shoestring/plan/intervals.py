"""The search for a law's constants, and intervals that hold: of constants by profiles, of predictions by held-out rungs.

A prediction's width has three parts. How far resamples of the runs disagree about it grows with the distance from them. The
deviation of the residuals is what a run varies by. And rungs of the ladder are held out in turn, from the top: how many of
these widths their errors took is the factor that all widths are multiplied by, where it is above that of Student's t. So a law
that extrapolates badly on the runs at hand says so, and gets wide intervals.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.plan import fit
from shoestring.plan.runs_table import Column
from shoestring.plan.scaled import Scaled

FIRST_DELTA = 0.02
"""Huber's delta of the first search, in which the deviation of residuals is not known yet: as a share of the target."""

TUNING = 1.345
"""Huber's delta in deviations: it costs 5 % of efficiency where residuals are normal."""

ROUGH_STEPS = 40
"""Of all starts, after which the best are searched to the end."""

KEPT = 12
"""Starts that are searched to the end."""

LEAST_DEVIATION = 1e-6
"""Below which residuals are rounding."""

LEAST_SHARE = 0.6
"""Of the runs that a rung is fitted to, at least: fits of fewer are so much worse that they tell little of the whole."""

PROFILE = tuple(s * d for d in (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 9, 14, 22) for s in (-1.0, 1.0))
"""Places, in standard errors, at which a constant is held while the others are fitted."""


CLOSER = tuple(step / 12 for step in range(1, 13))
"""Places between the last within and the first beyond, as shares of the way."""


@dataclass(frozen=True)
class FitSettings:
    """As `Law.fit` explains them."""

    confidence: float = 0.9
    regularise: float = 0.0
    delta: float | None = None
    resamples: int = 100
    rungs: int = 5
    seed: int = 0
    most_steps: int = 400

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise UsageError(f"a confidence is a share between 0 and 1, and {self.confidence} is not")
        if self.regularise < 0 or (self.delta is not None and self.delta <= 0):
            raise UsageError("regularise is at least 0, and delta above 0")
        if self.resamples < 2 or self.rungs < 0 or self.most_steps < 1:
            raise UsageError("resamples are at least 2, rungs at least 0, most_steps at least 1")


@dataclass(frozen=True)
class Solution:
    """best: [p]. deviation: robust, of the residuals, by n - p degrees of freedom. delta: Huber's. freedom: n - p."""

    best: Tensor
    deviation: float
    delta: float
    freedom: int
    search: fit.Descent


def _deviation(residuals: Tensor, weights: Tensor, constants: int) -> Tensor:
    """[problems]: standard deviations, those beyond 2.5 times the middle size pulled in.

    A fit that pays little heed to outliers passes through about as many runs as it has constants. So the middle is that of the
    n - p largest residuals. residuals, weights: [problems, n].
    """
    seen = weights > 0
    count = seen.sum(1)
    sizes = torch.where(seen, residuals.abs(), -torch.inf).sort(1, descending=True).values
    middle = ((count - constants).clamp(min=1) / 2).long().clamp(max=residuals.shape[1] - 1)
    rough = 1.4826 * sizes.gather(1, middle[:, None])
    pulled = torch.minimum(sizes.clamp(min=0), 2.5 * rough.clamp(min=LEAST_DEVIATION))
    return ((pulled**2).sum(1) / (count - constants).clamp(min=1)).sqrt().clamp(min=LEAST_DEVIATION)


def solve(scaled: Scaled, settings: FitSettings) -> Solution:
    """The best constants, from a grid of starts.

    Raises: UsageError for too few rows; ShoestringError where no start leads anywhere.
    """
    n, p = len(scaled.targets), len(scaled.low)
    if n < p + 1:
        raise UsageError(
            f"{n} rows are too few for the {p} constants of the law '{scaled.formula.name}': {p + 1} at least"
        )
    first = settings.delta or FIRST_DELTA * (1.0 if scaled.formula.scale == "log" else scaled.middle)
    weights = torch.ones(len(scaled.starts), n, dtype=torch.float64)
    box = scaled.box(settings.regularise)
    rough_steps = min(ROUGH_STEPS, settings.most_steps)
    rough = fit.descend(scaled.expected, scaled.starts, scaled.targets, weights, box, first, most_steps=rough_steps)
    if not bool(rough.errors.isfinite().any()):
        raise ShoestringError(f"the law '{scaled.formula.name}' could not be fitted: no start led to a finite error")
    chosen = rough.errors.argsort()[:KEPT]
    at = rough.variables[chosen]
    delta, deviation = first, 0.0
    for _ in range(1 if settings.delta else 2):
        best = at[:1]
        deviation = float(_deviation(scaled.expected(best[:, None]) - scaled.targets, weights[:1], p))
        delta = settings.delta or max(TUNING * deviation, LEAST_DEVIATION)
        box = scaled.box(settings.regularise * delta_share(deviation, delta))
        search = fit.descend(
            scaled.expected, at, scaled.targets, weights[: len(at)], box, delta, most_steps=settings.most_steps,
            rivals=True,
        )  # fmt: skip
        order = search.errors.argsort()
        search = fit.Descent(search.variables[order], search.errors[order], search.slopes[order], search.steps)
        at = search.variables
    deviation = float(_deviation(scaled.expected(at[:1, None]) - scaled.targets, weights[:1], p))
    return Solution(at[0], deviation, delta, n - p, search)


def delta_share(deviation: float, delta: float) -> float:
    """What a prior of one standard deviation weighs beside residuals that are in units of delta."""
    return deviation / delta


def quantile(confidence: float, freedom: int) -> float:
    """Of Student's t, two-sided."""
    from scipy.special import stdtrit  # scipy.stats takes a second to load

    return float(stdtrit(max(freedom, 1), (1 + confidence) / 2))


def profiles(scaled: Scaled, solution: Solution, settings: FitSettings) -> dict[str, tuple[float, float]]:
    """An interval of each constant, by its profile.

    The constant is held at places to either side while all others are fitted. The interval ends where the error has risen by as
    much as the confidence allows, by Student's t of n - p degrees of freedom, or at the constant's bound where it never does.
    Where it ends is bracketed first, and then looked for more closely.
    """
    share = delta_share(solution.deviation, solution.delta)
    rise = share * quantile(settings.confidence, solution.freedom) / math.sqrt(2)
    natural, best = scaled.natural(solution.best)
    base = natural.box(settings.regularise * share)
    covariance = _covariance(natural, best, base, solution)
    p = len(best)
    errors = covariance.diagonal().clamp(min=1e-16).sqrt()
    which = torch.arange(p).repeat_interleave(len(PROFILE))
    held = best[which] + torch.tensor(PROFILE, dtype=best.dtype).repeat(p) * errors[which]
    held = torch.minimum(torch.maximum(held, base.low[which]), base.high[which])
    starts = best + (covariance[which] / (errors[which] ** 2)[:, None]) * (held - best[which])[:, None]
    lowest = float(solution.search.errors[0])
    found, rises = _profile(natural, solution, base, which, held, starts, lowest)
    sides, inner, outer, near = [], [], [], []
    for at in range(p):
        for side, bound in ((0, base.low[at]), (1, base.high[at])):
            part = range(at * len(PROFILE) + side, (at + 1) * len(PROFILE), 2)
            last, start, end = best[at], best, bound
            for row in part:
                if rises[row] >= rise:
                    end = held[row]
                    break
                last, start = held[row], found[row]
            sides.append(at)
            inner.append(last)
            outer.append(end)
            near.append(start)
    which = torch.tensor(sides).repeat_interleave(len(CLOSER))
    shares = torch.tensor(CLOSER, dtype=best.dtype).repeat(len(sides))
    first, last = (torch.stack(ends).repeat_interleave(len(CLOSER)) for ends in (inner, outer))
    held = first + shares * (last - first)
    starts = torch.stack(near).repeat_interleave(len(CLOSER), 0)
    _, rises = _profile(natural, solution, base, which, held, starts, lowest)
    ends: dict[str, list[float]] = {name: [] for name in scaled.formula.names}
    for number, at in enumerate(sides):
        part = range(number * len(CLOSER), (number + 1) * len(CLOSER))
        z = best.clone()
        z[at] = next((held[row] for row in part if rises[row] >= rise), outer[number])
        ends[scaled.formula.names[at]].append(float(natural.constants(z)[scaled.formula.names[at]]))
    return {name: (min(pair), max(pair)) for name, pair in ends.items()}


def _profile(
    scaled: Scaled, solution: Solution, base: fit.Box, which: Tensor, held: Tensor, starts: Tensor, lowest: float
) -> tuple[Tensor, Tensor]:
    """(variables [m, p], roots of the rises of the error [m]) with variable `which` [m] held at `held` [m]."""
    rows = torch.arange(len(which))
    low, high, starts = base.low.repeat(len(which), 1), base.high.repeat(len(which), 1), starts.clone()
    low[rows, which] = high[rows, which] = starts[rows, which] = held
    box = fit.Box(low, high, base.centre.expand_as(low), base.tightness.expand_as(low))
    weights = torch.ones(len(which), len(scaled.targets), dtype=torch.float64)
    done = fit.descend(
        scaled.expected, starts, scaled.targets, weights, box, solution.delta, most_steps=60, tolerance=1e-4
    )
    return done.variables, (done.errors - lowest).clamp(min=0).sqrt()


def _covariance(scaled: Scaled, best: Tensor, box: fit.Box, solution: Solution) -> Tensor:
    """[p, p], of the variables, from the Gauss-Newton matrix at the best."""
    _, slopes = fit.jacobian(scaled.expected, best[None], len(scaled.targets))
    residuals = (scaled.expected(best[None, None]) - scaled.targets) / solution.delta
    counted = 1 / residuals.abs().clamp(min=1)
    h = torch.einsum("n,np,nq->pq", counted[0], slopes[0], slopes[0]) / solution.delta**2 + torch.diag(box.tightness**2)
    scale = h.diagonal().clamp(min=1e-30).sqrt()
    inverse = torch.linalg.pinv(h / scale[:, None] / scale[None, :], rtol=1e-12, hermitian=True)
    return inverse / scale[:, None] / scale[None, :] * delta_share(solution.deviation, solution.delta) ** 2


@dataclass(frozen=True)
class Band:
    """What makes the width of predictions.

    draws: [resamples, p], constants of resampled runs.
    factor: of widths.
    held_out: how many held-out errors it rests on.
    held_out_error: their mean size, on the law's scale; NaN where there are none.
    """

    draws: Tensor
    factor: float
    held_out: int
    held_out_error: float

    def at(self, scaled: Scaled, solution: Solution, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(expected values [n], half widths [n]) of other runs, on the formula's scale."""
        value = scaled.expected(solution.best[None, None], columns)[0]
        spread = _spread(scaled.expected(self.draws[:, None], columns), value, len(scaled.targets), solution.freedom)
        return value, self.factor * (spread**2 + solution.deviation**2).sqrt()


def _spread(drawn: Tensor, value: Tensor, n: int, freedom: int) -> Tensor:
    """[m]: how far draws [resamples, m] lie from the values, as a standard deviation that a few lost draws do not move."""
    away = torch.where(drawn.isfinite(), (drawn - value).abs(), torch.inf)
    return away.quantile(0.683, dim=0).clamp(max=1e3) * math.sqrt(n / max(freedom, 1))


def _resampled(count: int, n: int, seed: int) -> Tensor:
    """[count, n]: weights of runs, exponential of mean 1, which is the bootstrap in which no run is ever lost."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(count, n, dtype=torch.float64).exponential_(generator=generator)


def band(scaled: Scaled, solution: Solution, settings: FitSettings) -> Band:
    """The width of predictions, from resamples of the runs and from held-out rungs."""
    n = len(scaled.targets)
    weights = _resampled(settings.resamples, n, settings.seed)
    box = scaled.box(settings.regularise * delta_share(solution.deviation, solution.delta))
    draws = fit.descend(
        scaled.expected, solution.best.repeat(len(weights), 1), scaled.targets, weights, box, solution.delta,
        most_steps=40, tolerance=1e-3,
    ).variables  # fmt: skip
    above = held_out(scaled, solution, settings)
    student = quantile(settings.confidence, solution.freedom)
    if not above:
        return Band(draws, student, 0, math.nan)
    errors = torch.cat([error for _, error, _ in above]).abs()
    scores = (errors / torch.cat([width for _, _, width in above])).sort().values
    rank = min(math.ceil((len(scores) + 1) * settings.confidence), len(scores))
    return Band(draws, max(float(scores[rank - 1]), student), len(scores), float(errors.mean()))


def rungs(scaled: Scaled, count: int) -> list[Tensor]:
    """Masks [n] of the runs below each cut of the ladder, the lowest cut first; at most `count`."""
    ladder = ladder_of(scaled)
    least = max(len(scaled.low) + 2, math.ceil(LEAST_SHARE * len(ladder)))
    cuts = [level for level in np.unique(ladder) if (ladder < level).sum() >= least]
    chosen = (
        [cuts[at] for at in sorted({round(x) for x in np.linspace(0, len(cuts) - 1, min(count, len(cuts)))})]
        if cuts
        else []
    )
    return [torch.as_tensor(ladder < level) for level in chosen]


def ladder_of(scaled: Scaled) -> Column:
    """[n]: the column along which runs get larger; the law's first column where the table has no other."""
    formula = scaled.formula
    return scaled.rows.column(formula.ladder if scaled.rows.has(formula.ladder) else formula.columns[0])


def held_out(scaled: Scaled, solution: Solution, settings: FitSettings) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each rung: (mask of the runs above it [n], their errors, their widths), from a fit of the runs below."""
    masks = rungs(scaled, settings.rungs)
    if not masks:
        return []
    n, p, each = len(scaled.targets), len(scaled.low), max(10, settings.resamples // 4)
    starts = torch.cat([solution.search.variables[:4], scaled.starts[:: max(1, len(scaled.starts) // 4)][:4]])
    below = torch.stack(masks).double()
    weights = below.repeat_interleave(len(starts), 0)
    box = scaled.box(settings.regularise * delta_share(solution.deviation, solution.delta))
    searched = fit.descend(
        scaled.expected, starts.repeat(len(masks), 1), scaled.targets, weights, box, solution.delta,
        most_steps=120, tolerance=1e-4,
    )  # fmt: skip
    errors = searched.errors.reshape(len(masks), len(starts))
    best = searched.variables.reshape(len(masks), len(starts), p)[torch.arange(len(masks)), errors.argmin(1)]
    fitted = scaled.expected(best[:, None])
    deviation = _deviation(fitted - scaled.targets, below, p)
    resampled = below.repeat_interleave(each, 0) * _resampled(each * len(masks), n, settings.seed + 1)
    drawn = scaled.expected(
        fit.descend(
            scaled.expected, best.repeat_interleave(each, 0), scaled.targets, resampled, box, solution.delta,
            most_steps=40, tolerance=1e-3,
        ).variables[:, None]
    ).reshape(len(masks), each, n)  # fmt: skip
    found = []
    for at, mask in enumerate(masks):
        count = int(mask.sum())
        spread = _spread(drawn[at], fitted[at], count, count - p)
        width = (spread**2 + deviation[at] ** 2).sqrt()
        found.append((~mask, (scaled.targets - fitted[at])[~mask], width[~mask]))
    return found
