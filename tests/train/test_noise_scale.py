"""The gradient noise scale, on gradients whose covariance is known."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.train.noise_scale import LEAST, NoiseScale


def squared(vector: torch.Tensor) -> float:
    return float(vector @ vector)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(1, 100), st.integers(1, 100))
def test_expected_norms_give_the_scale_exactly(signal: float, noise: float, small: int, more: int) -> None:
    big = small + more
    scale = NoiseScale()
    for _ in range(LEAST):
        scale.measure(signal + noise / small, small, signal + noise / big, big)
    assert scale.signal == pytest.approx(signal, rel=1e-6)
    assert scale.noise == pytest.approx(noise, rel=1e-6)
    assert scale.critical_batch == pytest.approx(noise / signal, rel=1e-6)


def test_estimates_are_unbiased_over_every_draw() -> None:
    """All draws with replacement of three of four examples, the first of which is the small batch."""
    generator = torch.Generator().manual_seed(1)
    examples = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    mean = examples.mean(0)
    trace = float((examples - mean).square().sum(1).mean())
    signals, noises = [], []
    for drawn in itertools.product(range(4), repeat=3):
        scale = NoiseScale(decay=0.0)
        scale.measure(squared(examples[drawn[0]]), 1, squared(examples[list(drawn)].mean(0)), 3)
        signals.append(scale.signal)
        noises.append(scale.noise)
    assert math.fsum(signals) / len(signals) == pytest.approx(squared(mean))  # type: ignore[arg-type]
    assert math.fsum(noises) / len(noises) == pytest.approx(trace)  # type: ignore[arg-type]


def test_finds_the_scale_of_gradients_with_a_known_covariance() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.full((50,), 0.2, dtype=torch.float64)  # |G|^2 = 2
    deviations = torch.linspace(0.5, 1.5, 50, dtype=torch.float64)  # of one example
    scale = NoiseScale(decay=0.998)
    for _ in range(1500):
        examples = truth + deviations * torch.randn(32, 50, generator=generator, dtype=torch.float64)
        scale.measure(squared(examples[:4].mean(0)), 4 * 64, squared(examples.mean(0)), 32 * 64)
    sequences = float(deviations.square().sum()) / 2
    assert scale.critical_batch == pytest.approx(sequences * 64, rel=0.1)
    assert scale.signal == pytest.approx(2, rel=0.1)


def test_is_the_ratio_of_averages_not_the_average_of_ratios() -> None:
    scale = NoiseScale(decay=0.5)
    for _ in range(30):
        scale.measure(1 + 1.0, 1, 1 + 1 / 2, 2)  # signal 1, noise 1: ratio 1
        scale.measure(1 + 9.0, 1, 1 + 9 / 2, 2)  # signal 1, noise 9: ratio 9
        scale.measure(5 + 9.0, 1, 5 + 9 / 2, 2)  # signal 5, noise 9: ratio 1.8
    # weights of the last three: 4/7, 2/7, 1/7
    assert scale.critical_batch == pytest.approx((4 * 9 + 2 * 9 + 1) / (4 * 5 + 2 * 1 + 1))


def test_tells_nothing_until_enough_is_measured() -> None:
    scale = NoiseScale()
    assert (scale.signal, scale.noise, scale.critical_batch) == (None, None, None)
    for _ in range(LEAST - 1):
        scale.measure(3.0, 1, 2.0, 2)
    assert scale.critical_batch is None
    scale.measure(3.0, 1, 2.0, 2)
    assert scale.critical_batch == pytest.approx(2)


@pytest.mark.parametrize("big_squared", [0.5, 4.0])
def test_a_signal_or_noise_below_zero_measures_nothing_yet(big_squared: float) -> None:
    scale = NoiseScale()
    for _ in range(2 * LEAST):
        scale.measure(3.0, 1, big_squared, 2)
    assert scale.critical_batch is None
    assert min(scale.signal, scale.noise) < 0  # type: ignore[operator, type-var]


def test_norms_that_are_not_finite_are_left_out() -> None:
    scale = NoiseScale()
    scale.measure(3.0, 1, 2.0, 2)
    before = scale.state()
    scale.measure(math.inf, 1, 2.0, 2)
    scale.measure(3.0, 1, math.nan, 2)
    assert scale.state() == before


@pytest.mark.parametrize(("small", "big"), [(2, 2), (3, 2), (0, 2), (-1, 2)])
def test_sizes_that_tell_nothing_are_refused(small: int, big: int) -> None:
    with pytest.raises(ValueError, match="a small and a big batch"):
        NoiseScale().measure(3.0, small, 2.0, big)
    with pytest.raises(ValueError, match="decay = 1"):
        NoiseScale(decay=1)


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), min_size=1, max_size=60), st.integers(0, 60))
def test_resumes_bit_exact_through_json(norms: list[tuple[float, float]], at: int) -> None:
    straight, first, second = NoiseScale(), NoiseScale(), NoiseScale()
    for small, big in norms:
        straight.measure(small, 3, big, 8)
    for small, big in norms[:at]:
        first.measure(small, 3, big, 8)
    second.restore(json.loads(json.dumps(first.state())))
    for small, big in norms[at:]:
        second.measure(small, 3, big, 8)
    assert second.state() == straight.state()
    assert second.critical_batch == straight.critical_batch
