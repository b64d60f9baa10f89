"""The fitter and its intervals: outliers, early stops, bounds, priors, held-out rungs."""

import math

import numpy as np
import pytest

from shoestring.errors import UsageError
from shoestring.plan import intervals
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.laws.compute_only import ComputeOnly
from shoestring.plan.runs_table import RunsTable
from shoestring.plan.scaled import Scaled

LAW = {"E": 1.7, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


def runs(noise: float, seed: int = 0, levels: int = 4) -> RunsTable:
    """A grid of runs of a planted law, the logarithms of whose losses lie `noise` about it."""
    drawn, law = np.random.default_rng(seed), Chinchilla()
    rows = []
    for size in np.geomspace(1e6, 1e6 * 4 ** (levels - 1), levels):
        for tokens in np.geomspace(1e7, 1e7 * 5 ** (levels - 1), levels):
            loss = law.value(LAW, {"parameters": size, "tokens": tokens}) * math.exp(noise * drawn.standard_normal())
            rows.append({"parameters": float(size), "tokens": float(tokens), "loss": loss})
    return RunsTable.of(rows)


def test_planted_constants_lie_within_their_intervals() -> None:
    held = dict.fromkeys(LAW, 0)
    fits = 8
    for seed in range(fits):
        found = Chinchilla().fit(runs(0.003, seed), resamples=2, rungs=0)
        for name, (low, high) in found.intervals.items():
            held[name] += low <= LAW[name] <= high
            assert low <= found.constants[name] <= high
    assert sum(held.values()) >= 0.8 * fits * len(held), held  # 90 % are aimed at


def test_a_search_that_stops_early_is_told() -> None:
    table = runs(0.003)
    whole, cut = (Chinchilla().fit(table, resamples=2, rungs=0, most_steps=steps) for steps in (400, 1))
    assert not whole.stopped_early
    assert not any("stopped early" in doubt for doubt in whole.doubts)
    assert cut.stopped_early
    assert any("stopped early" in doubt for doubt in cut.doubts)
    assert whole.convergence.agreeing() > 5


def test_the_usual_optimiser_stops_earlier_than_this_one() -> None:
    from scipy.optimize import minimize

    table = runs(0.003, seed=1)
    law = Chinchilla()
    size, tokens, loss = (np.log(table.column(name)) for name in ("parameters", "tokens", "loss"))

    def error(v: np.ndarray) -> float:
        terms = np.stack([v[1] - v[3] * size, v[2] - v[4] * tokens, np.full_like(size, v[0])])
        return float(np.mean((np.log(np.exp(terms).sum(0)) - loss) ** 2))

    usual = minimize(error, [0.0, 5.0, 5.0, 0.5, 0.5], method="L-BFGS-B")
    ours = law.fit(table, resamples=2, rungs=0, delta=1.0)
    found = [math.log(ours.constants[name]) if name in "EAB" else ours.constants[name] for name in LAW]
    assert usual.success  # so it says
    assert error(np.array(found)) < 0.98 * usual.fun


def test_an_outlier_moves_predictions_little_and_is_named() -> None:
    table = runs(0.002)
    losses = table.column("loss").copy()
    losses[5] *= 1.3
    row = {"parameters": 1e9, "tokens": 1e10}
    clean, dirty = (Chinchilla().fit(t, resamples=2, rungs=0) for t in (table, table.adding("loss", losses)))
    assert dirty.predict(row).value == pytest.approx(clean.predict(row).value, rel=0.01)
    assert any("run 6" in doubt for doubt in dirty.doubts)
    assert not any("run 6" in doubt for doubt in clean.doubts)


def test_what_runs_do_not_determine_is_said_and_its_interval_reaches_the_bound() -> None:
    straight = {"E": 1e-9, "A": 20.0, "B": 20.0, "alpha": 0.1, "beta": 0.1}
    law = Chinchilla()
    rows = [
        {"parameters": n, "tokens": d, "loss": law.value(straight, {"parameters": n, "tokens": d})}
        for n in (1e6, 4e6, 16e6)
        for d in (1e7, 4e7, 16e7)
    ]
    found = law.fit(RunsTable.of(rows), resamples=2, rungs=0)
    assert any("E is at the end of its range" in doubt for doubt in found.doubts)


def test_priors_narrow_what_few_runs_leave_open() -> None:
    table = runs(0.01, levels=3)
    free, held = (Chinchilla().fit(table, resamples=2, rungs=0, regularise=weight) for weight in (0.0, 1.0))
    for name in ("E", "alpha", "beta"):
        widths = [fit.intervals[name][1] - fit.intervals[name][0] for fit in (free, held)]
        assert widths[1] < widths[0]
    assert held.intervals["alpha"][0] <= LAW["alpha"] <= held.intervals["alpha"][1]


def test_a_prediction_interval_grows_with_the_distance_and_holds() -> None:
    fitted = Chinchilla(tied=True).fit(runs(0.003), resamples=40, rungs=3)
    widths = []
    for scale in (1.0, 30.0, 1000.0):
        value, low, high = fitted.predict({"parameters": 8e6 * scale, "tokens": 2.5e8 * scale})
        assert low < value < high
        widths.append(high / low)
    assert widths == sorted(widths)
    held = 0
    for seed in range(3):
        fitted = Chinchilla().fit(runs(0.003, seed), resamples=40, rungs=3)
        for scale in (2.0, 8.0, 32.0):
            row = {"parameters": 64e6 * scale, "tokens": 1e9 * scale}
            _, low, high = fitted.predict(row)
            held += low <= Chinchilla().value(LAW, row) <= high
    assert held >= 8  # of nine


def test_a_law_that_extrapolates_badly_gets_wide_intervals() -> None:
    """The straight line of compute cannot follow a curve: its errors on held-out rungs say so."""
    table = runs(0.001)
    bad = ComputeOnly().fit(table, resamples=20)
    good = Chinchilla().fit(table, resamples=20)
    row = {"parameters": 1e9, "tokens": 2e10, "compute": 1.2e20}
    spans = [fit.predict(row).high - fit.predict(row).low for fit in (bad, good)]
    assert spans[0] > 3 * spans[1]


def test_rungs_are_held_out_from_the_top_and_never_seen() -> None:
    table = runs(0.003)
    law = Chinchilla()
    scaled = Scaled(law, law.prepare(table))
    compute = table.column("parameters") * table.column("tokens")
    masks = intervals.rungs(scaled, 4)
    assert len(masks) >= 2
    for mask in masks:
        seen = mask.numpy()
        assert compute[seen].max() < compute[~seen].min()
        assert seen.sum() >= 0.6 * len(table)


def test_the_seed_fixes_predictions() -> None:
    table = runs(0.003, levels=3)
    row = {"parameters": 1e9, "tokens": 1e10}
    one, same, other = (Chinchilla().fit(table, seed=seed, resamples=10, rungs=2).predict(row) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_few_rows_and_settings_out_of_range_are_refused() -> None:
    table = runs(0.0)
    with pytest.raises(UsageError, match="5 rows are too few for the 5 constants"):
        Chinchilla().fit(table.select(range(5)))
    for wrong in ({"confidence": 1.0}, {"regularise": -1.0}, {"delta": 0.0}, {"resamples": 1}, {"rungs": -1}):
        with pytest.raises(UsageError):
            Chinchilla().fit(table, **wrong)
    with pytest.raises(UsageError, match="a loss above 0"):
        Chinchilla().fit(table.adding("loss", -table.column("loss")))
