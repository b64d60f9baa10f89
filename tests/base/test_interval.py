"""Intervals of ratios: they cover the truth as often as they say, for units of any sizes."""

import numpy as np
import pytest

from shoestring.base.interval import difference, effective, ratio


@pytest.mark.parametrize(("count", "spread"), [(8, 0.0), (12, 1.0), (40, 1.1)])
def test_the_interval_covers_the_truth(count: int, spread: float) -> None:
    generator = np.random.default_rng(0)
    covered, times = 0, 600
    for _ in range(times):
        sizes = np.exp(generator.normal(size=count) * spread)
        found = ratio(sizes * (1 + 0.2 * generator.normal(size=count)), sizes)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1 <= found.high
    assert 0.93 <= covered / times <= 0.98  # at 95 %, of 600, two standard deviations are 0.018


def test_the_mean_of_equal_units_has_students_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    found = ratio(values, np.ones(4))
    half = 3.182446 * values.std(ddof=1) / 2
    assert (found.value, found.low) == (3.0, pytest.approx(3 - half, rel=1e-4))
    assert ratio(values, np.full(4, 10.0)).value == pytest.approx(0.3)


def test_what_both_have_leaves_the_difference() -> None:
    text = np.array([1.0, 9.0, 4.0, 2.0])
    found = difference(text + 0.5, text, np.full(4, 2.0))
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
    assert found.shown
    assert not difference(text, text, np.ones(4)).shown


def test_too_few_units_have_no_interval() -> None:
    assert ratio(np.array([1.0]), np.array([2.0])).low is None
    assert ratio(np.array([1.0, 1.0]), np.array([1000.0, 1.0])).low is None  # one document and a line
    assert effective(np.array([3.0, 3.0, 3.0])) == pytest.approx(3)
    assert effective(np.zeros(0)) == 0
