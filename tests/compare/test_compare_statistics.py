import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from shoestring.compare.statistics import MOST_PAIRS, minimum_detectable_effect, paired, pairs_needed


def test_the_interval_is_the_one_worked_out_by_hand() -> None:
    # mean 0.03; squares of the deviations 0, 1e-4, 1e-4; s = 0.01; t(0.975, 2) = 4.302653 from a printed table
    found = paired([0.03, 0.02, 0.04], 0.95)
    half = 4.302652730 * 0.01 / math.sqrt(3)
    assert found.interval == pytest.approx((0.03 - half, 0.03 + half), abs=1e-10)
    assert found.standard_deviation == pytest.approx(0.01)
    # with 2 degrees of freedom P(|T| > t) = 1 - t / sqrt(2 + t^2)
    t = 0.03 * math.sqrt(3) / 0.01
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-10)
    assert found.p_value is not None
    assert found.p_value < 0.05
    assert found.shown is True


@given(
    st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=12).filter(lambda x: np.std(x) > 1e-6),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_it_agrees_with_scipys_own_test_and_shows_what_its_interval_excludes(
    differences: list[float], confidence: float
) -> None:
    found, other = paired(differences, confidence), stats.ttest_1samp(differences, 0.0)
    assert found.p_value == pytest.approx(other.pvalue, rel=1e-7)
    low, high = other.confidence_interval(confidence)
    assert found.interval == pytest.approx((low, high), rel=1e-7, abs=1e-12)
    assert found.interval is not None
    assert found.shown == (found.interval[0] > 0 or found.interval[1] < 0)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9), st.floats(-1, 1))
def test_swapping_the_arms_mirrors_everything(differences: list[float], shift: float) -> None:
    one, other = paired([d + shift for d in differences], 0.95), paired([-(d + shift) for d in differences], 0.95)
    assert (one.difference, one.p_value) == (-(other.difference or 0.0), other.p_value)
    assert one.minimum_detectable_effect == other.minimum_detectable_effect


def test_too_little_to_say_anything() -> None:
    none, one = paired([], 0.95), paired([0.3], 0.95)
    assert (none.pairs, none.difference, none.shown) == (0, None, False)
    assert (one.pairs, one.difference, one.interval, one.p_value, one.shown) == (1, 0.3, None, None, False)
    with pytest.raises(ValueError, match="not finite"):
        paired([0.1, math.nan], 0.95)


@pytest.mark.parametrize("offset", [0.0, 0.25, -1e-3])
def test_differences_that_never_vary_are_no_certainty(offset: float) -> None:
    bases = [1.7 + 0.9 * seed for seed in range(7)]
    differences = [(base + offset) - base for base in bases]  # equal but for rounding
    found = paired(differences, 0.95, scale=max(bases))
    assert found.constant
    assert not found.shown
    assert (found.interval, found.p_value, found.minimum_detectable_effect) == (None, None, None)
    assert found.difference == pytest.approx(offset, abs=1e-12)


def test_small_but_real_noise_is_noise() -> None:
    assert not paired([0.01, 0.01001, 0.00999], 0.95, scale=4.0).constant


def _power(effect: float, pairs: int, confidence: float) -> float:
    """P(T > q) of a noncentral t by integrating over the standard deviation: E Phi(effect sqrt(n) - q sqrt(V / df))."""
    degrees = pairs - 1
    critical = stats.t.ppf((1 + confidence) / 2, degrees)

    def integrand(u: float) -> float:
        return float(
            special.ndtr(effect * math.sqrt(pairs) - critical * math.sqrt(special.chdtri(degrees, 1 - u) / degrees))
        )

    return float(integrate.quad(integrand, 0, 1, limit=200)[0])


@pytest.mark.parametrize(
    ("pairs", "confidence"), [(2, 0.95), (2, 0.995), (3, 0.95), (3, 0.999), (5, 0.9), (12, 0.95), (40, 0.95)]
)
def test_the_minimum_detectable_effect_has_the_power_it_says(pairs: int, confidence: float) -> None:
    effect = minimum_detectable_effect(1.0, pairs, confidence)
    assert effect is not None
    assert _power(effect, pairs, confidence) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_the_minimum_detectable_effect_agrees_with_simulation(pairs: int) -> None:
    effect = minimum_detectable_effect(0.02, pairs, 0.95)
    assert effect is not None
    repetitions = 40_000
    draws = effect + 0.02 * np.random.default_rng(pairs).standard_normal((repetitions, pairs))
    t = draws.mean(1) / draws.std(1, ddof=1) * math.sqrt(pairs)
    shown = int((t > stats.t.ppf(0.975, pairs - 1)).sum())
    low, high = stats.binom.interval(0.9999, repetitions, 0.8)
    assert low <= shown <= high


@given(st.floats(1e-3, 10), st.floats(1e-3, 1))
def test_pairs_needed_is_the_least_number_that_suffices(effect: float, deviation: float) -> None:
    needed = pairs_needed(effect, deviation, 0.95)
    assert needed == pairs_needed(-effect, deviation, 0.95)
    if needed is None:
        assert (minimum_detectable_effect(deviation, MOST_PAIRS, 0.95) or 0) > effect
        return
    assert (minimum_detectable_effect(deviation, needed, 0.95) or 0) <= effect
    if needed > 2:
        assert (minimum_detectable_effect(deviation, needed - 1, 0.95) or 0) > effect
