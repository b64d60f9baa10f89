import math

import numpy as np
import pytest

from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.plan.laws.parametric import Fit, ParametricLaw, Point, fit_parametric
from shoestring.report.law_figure import law_figure

FLOAT = ParametricLaw(E=1.8, A=60, B=300, alpha=0.35, beta=0.45)
TERNARY = ParametricLaw(E=2.19, A=200, B=3e4, alpha=0.32, beta=0.81)


def runs(law: ParametricLaw, noise: float, seed: int = 0, levels: int = 4) -> list[Point]:
    """A grid of runs, the logarithms of whose losses lie `noise` about the law."""
    drawn = np.random.default_rng(seed)
    return [
        Point(size, tokens, law.loss(size, tokens) * math.exp(noise * drawn.standard_normal()))
        for size in np.geomspace(1e5, 1e5 * 4 ** (levels - 1), levels)
        for tokens in np.geomspace(1e5, 1e5 * 4 ** (levels - 1), levels)
    ]


@pytest.mark.parametrize("law", [FLOAT, TERNARY], ids=["float", "ternary"])
def test_without_noise_the_planted_law_comes_back(law: ParametricLaw) -> None:
    found = fit_parametric(runs(law, 0.0), resamples=2)
    for name in ("E", "alpha", "beta"):
        assert getattr(found.law, name) == pytest.approx(getattr(law, name), rel=1e-3)
    assert found.law.loss(1e8, 1e9) == pytest.approx(law.loss(1e8, 1e9), rel=1e-3)
    assert found.deviation < 1e-4
    assert not found.at_bounds


@pytest.fixture(scope="module")
def fits() -> dict[str, list[Fit]]:
    """Four fits of each law, under noise of 0.3 %."""
    laws = {"Float": FLOAT, "Ternary": TERNARY}
    return {
        name: [fit_parametric(runs(law, 0.003, seed), resamples=30, confidence=0.95) for seed in range(4)]
        for name, law in laws.items()
    }


@pytest.mark.parametrize(("name", "law"), [("Float", FLOAT), ("Ternary", TERNARY)])
def test_with_noise_the_planted_exponents_lie_within_the_intervals(
    fits: dict[str, list[Fit]], name: str, law: ParametricLaw
) -> None:
    held = 0
    for fit in fits[name]:
        for constant in ("alpha", "beta"):
            low, high = fit.intervals[constant]
            held += low <= getattr(law, constant) <= high
            assert low < getattr(fit.law, constant) < high
            assert high - low < 0.3
    assert held >= 6  # of eight
    assert np.mean([fit.deviation for fit in fits[name]]) == pytest.approx(0.003, rel=0.3)
    assert "alpha" in fits[name][0].describe()


def test_an_outlier_moves_the_exponents_little() -> None:
    points = runs(FLOAT, 1e-3)
    before = fit_parametric(points, resamples=1).law
    points[5] = Point(points[5].parameters, points[5].tokens, points[5].loss * 1.3)
    after = fit_parametric(points, resamples=1).law
    assert after.alpha == pytest.approx(before.alpha, abs=0.03)
    assert after.beta == pytest.approx(before.beta, abs=0.03)


def test_more_noise_widens_the_intervals_and_the_seed_fixes_them() -> None:
    quiet, loud = (fit_parametric(runs(FLOAT, noise, levels=3), resamples=20) for noise in (0.001, 0.01))
    for name in ("alpha", "beta"):
        widths = [fit.intervals[name][1] - fit.intervals[name][0] for fit in (quiet, loud)]
        assert widths[1] > 2 * widths[0]
    again = fit_parametric(runs(FLOAT, 0.001, levels=3), resamples=20)
    assert again.intervals == quiet.intervals


def test_what_the_runs_do_not_determine_is_said() -> None:
    straight = ParametricLaw(E=1e-9, A=20, B=20, alpha=0.1, beta=0.1)  # falls in a straight line: no E to be seen
    found = fit_parametric(runs(straight, 0.0, levels=3), resamples=1)
    assert "E" in found.at_bounds
    assert "E is at the end of its range" in found.describe()


def test_too_few_runs_and_no_numbers_are_refused() -> None:
    grid = runs(FLOAT, 0.0, levels=3)
    with pytest.raises(UsageError, match="6 runs are too few"):
        fit_parametric(grid[:6])
    narrow = [point for point in runs(FLOAT, 0.0) if point.parameters < 1e6][:8]
    with pytest.raises(UsageError, match="2 sizes are too few"):
        fit_parametric(narrow)
    short = [point for point in runs(FLOAT, 0.0) if point.tokens < 1e6]
    with pytest.raises(UsageError, match="2 token counts are too few"):
        fit_parametric(short)
    for bad in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(UsageError, match="a loss above 0"):
            fit_parametric([*grid, Point(1e6, 1e6, bad)])
    with pytest.raises(ValueError, match="huber"):
        fit_parametric(grid, huber=0)


def test_the_better_use_of_compute() -> None:
    assert ParametricLaw(1, 1, 1, 0.5, 0.5).size_share == 0.5
    assert TERNARY.size_share > 0.5  # data run out of effect sooner: more compute is for size
    assert "arXiv:2203.15556" in methods("plan", "law")[0].paper


def test_the_figure_shows_the_exponents_and_every_run(fits: dict[str, list[Fit]]) -> None:
    first = {name: several[0] for name, several in fits.items()}
    figure = law_figure(first)
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == 2
    for axes, fit in zip(panels, first.values(), strict=True):
        words = " ".join(text.get_text() for text in axes.texts)
        assert f"α = {fit.law.alpha:.2f}" in words
        assert sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o") == 16  # type: ignore[arg-type, misc]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    with pytest.raises(ValueError, match="no fit"):
        law_figure({})
