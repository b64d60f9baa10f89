"""Shares of right answers: intervals that cover, an exact test, against scipy's and by brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shoestring.base.accuracy import Accuracy, sign_flips, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (57, 200), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(right: int, count: int) -> None:
    found = wilson(right / count, count)
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_the_test_counts_all_signs(differences: list[int]) -> None:
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert sign_flips(np.array(differences, dtype=int)) == pytest.approx(sum(s >= observed for s in sums) / len(sums))


@pytest.mark.parametrize(("gained", "lost", "same"), [(0, 0, 5), (9, 1, 0), (30, 14, 200), (1, 0, 3), (700, 600, 1000)])
def test_with_one_answer_each_it_is_mcnemars(gained: int, lost: int, same: int) -> None:
    own = np.array([1] * gained + [0] * lost + [1] * same)
    base = np.array([0] * gained + [1] * lost + [1] * same)
    found = Accuracy(own).over(Accuracy(base))
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert found.shown == (expected < 0.05)
    assert found.estimate.value == pytest.approx((gained - lost) / (gained + lost + same))


def test_newcombes_example() -> None:
    """His table: a, b, c, d of 36, 12, 2, 0 give 0.0569 to 0.3404 by the tenth method."""
    own = np.array([1] * 36 + [1] * 12 + [0] * 2)
    base = np.array([1] * 36 + [0] * 12 + [1] * 2)
    found = Accuracy(own).over(Accuracy(base)).estimate
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_interval_of_a_difference_holds_it(pairs: list[tuple[bool, bool]]) -> None:
    own, base = (np.array(each, dtype=int) for each in zip(*pairs, strict=True))
    found = Accuracy(own).over(Accuracy(base)).estimate
    back = Accuracy(base).over(Accuracy(own)).estimate
    assert found.low is not None
    assert found.high is not None
    assert -1 - 1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


@pytest.mark.parametrize(("samples", "alike"), [(1, 2.0), (8, 0.5), (8, 50.0)])
def test_intervals_cover(samples: int, alike: float) -> None:
    """Problems are unlike in difficulty: answers to one are alike. alike: the less, the more so."""
    draw, covered, shown = np.random.default_rng(5), 0, 0
    for _ in range(400):
        chances = draw.beta(0.7 * alike, 0.3 * alike, size=60)
        one, other = (Accuracy(draw.binomial(samples, chances), samples) for _ in range(2))
        low, high = one.estimate.low, one.estimate.high
        assert low is not None
        assert high is not None
        covered += low <= 0.7 <= high
        shown += one.over(other).shown
    assert covered >= 0.925 * 400
    assert shown <= 0.075 * 400


def test_a_difference_is_found() -> None:
    draw = np.random.default_rng(6)
    found = 0
    for _ in range(100):
        chances = draw.beta(1.4, 0.6, size=400)
        better = np.minimum(chances + 0.12, 1)
        found += Accuracy(draw.binomial(1, better)).over(Accuracy(draw.binomial(1, chances))).shown
    assert found >= 85


def test_several_answers_count_for_less_than_as_many_problems() -> None:
    draw = np.random.default_rng(7)
    chances = draw.beta(0.7, 0.3, size=60)
    several = Accuracy(draw.binomial(8, chances), 8).estimate
    width = (several.high or 0) - (several.low or 0)
    narrow, wide = wilson(several.value, 480), wilson(several.value, 60)
    assert (narrow.high or 0) - (narrow.low or 0) < width <= (wide.high or 0) - (wide.low or 0)


@pytest.mark.parametrize("right", [0, 4])
def test_all_alike_is_not_certain(right: int) -> None:
    found = Accuracy(np.full(20, right), 4)
    expected = wilson(right / 4, 20)
    assert found.estimate == expected
    assert found.any_right == (right > 0)
    assert math.isclose((expected.high or 0) - (expected.low or 0), 0.161, abs_tol=2e-3)


def test_other_problems_do_not_compare() -> None:
    with pytest.raises(ValueError, match="not to the same problems"):
        Accuracy(np.ones(3)).over(Accuracy(np.ones(4)))
