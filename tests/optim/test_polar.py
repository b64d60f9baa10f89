import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_muon import newton_schulz

from shoestring.optim.polar import (
    JORDAN,
    POLAR_EXPRESS,
    exact_polar,
    fast_precision,
    polar_error,
    polar_factor,
    polar_flops,
)

SIZES = st.integers(1, 24)


def spectrum(rows: int, columns: int, values: list[float]) -> torch.Tensor:
    """A random matrix with these singular values."""
    u, _ = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64))
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.T


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(1, 8), st.sampled_from(["jordan", "polar_express"]), st.integers(0, 999))
def test_steps_taken_in_pairs_agree_with_steps_taken_one_by_one(
    rows: int, columns: int, steps: int, method: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    matrices = torch.randn(2, 3, rows, columns)
    triples = [JORDAN] * steps if method == "jordan" else [*POLAR_EXPRESS, (1.875, -1.25, 0.375)][:steps]
    found = polar_factor(matrices, method=method, steps=steps, precision=torch.float64)
    for i in range(2):
        for j in range(3):
            expected = newton_schulz(matrices[i, j], triples, margin=1.0 if method == "jordan" else 1.01)
            torch.testing.assert_close(found[i, j], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32), (4, 24, 60), (2, 3, 60, 24)])
@pytest.mark.parametrize(("method", "bound"), [("jordan", 0.35), ("polar_express", 0.2), ("svd", 0.01)])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_is_near_the_exact_factor(shape: tuple[int, ...], method: Any, bound: float, precision: torch.dtype) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    found = polar_factor(matrices, method=method, precision=precision)
    assert found.shape == matrices.shape
    assert found.dtype == precision
    error = polar_error(matrices, found)
    assert error.shape == matrices.shape[:-2]
    assert error.max() < bound


def test_singular_values_far_apart_stay_in_bounds_in_bfloat16() -> None:
    torch.manual_seed(2)
    for values in ([1.0] + [1e-3] * 39, [1.0] * 4 + [0.0] * 36, [10.0**-i for i in range(8)], [1.0] * 20 + [1e-2] * 20):
        matrix = spectrum(40, 120, values).float()
        for method in ("jordan", "polar_express"):
            largest = torch.linalg.svdvals(polar_factor(matrix, method=method).float()).max()
            assert 0.6 < largest < 1.3, (values[:5], method)


def test_polar_express_has_the_minimax_polynomials_of_its_paper() -> None:
    """Each quintic misses its centre by as much below as above, in turn, at the four extremes of its interval.

    The interval begins at [0.001, 1] and is then what the polynomial before it makes of it, [l, 2 - l]. As in the
    paper's Appendix G its lower end is kept above 0.024 of its upper one, and p is scaled so that p(l) + p(u) = 2.
    """
    lower, upper = 1e-3, 1.0
    for triple in POLAR_EXPRESS[:6]:
        a, b, c = (coefficient * 1.01**power for coefficient, power in zip(triple, (1, 3, 5), strict=True))
        root = math.sqrt(9 * b * b - 20 * a * c)
        top, bottom = (math.sqrt((-3 * b - sign * root) / (10 * c)) for sign in (1, -1))
        ends = max(lower, 0.02407327424182761 * upper), upper, lower
        cushioned, high, low = (a * x + b * x**3 + c * x**5 for x in ends)
        assert a * top + b * top**3 + c * top**5 == pytest.approx(high, rel=1e-6)
        assert a * bottom + b * bottom**3 + c * bottom**5 == pytest.approx(cushioned, rel=1e-6)
        assert low + high == pytest.approx(2, rel=1e-9)
        lower, upper = low, high
    assert upper - lower < 0.003


def test_polar_express_converges_on_its_whole_interval() -> None:
    values = [10 ** (-3 * i / 31) for i in range(32)]
    matrix = spectrum(32, 32, values)
    matrix = matrix / matrix.norm()
    found = polar_factor(matrix, method="polar_express", steps=10, precision=torch.float64)
    torch.testing.assert_close(found @ found.T, torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-8)


def test_transposing_and_scaling_pass_through() -> None:
    torch.manual_seed(3)
    matrix = torch.randn(20, 50)
    factor = polar_factor(matrix, precision=torch.float32)
    torch.testing.assert_close(polar_factor(matrix.T, precision=torch.float32), factor.T)
    torch.testing.assert_close(polar_factor(matrix * 1e3, precision=torch.float32), factor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["jordan", "polar_express", "svd"])
def test_zeros_give_zeros_and_the_input_is_left_alone(method: Any) -> None:
    matrices = torch.stack([torch.zeros(4, 6), torch.ones(4, 6)])
    copy = matrices.clone()
    assert torch.equal(polar_factor(matrices, method=method, precision=torch.float32)[0], torch.zeros(4, 6))
    assert torch.equal(matrices, copy)


def test_exact_factor_of_a_deficient_matrix_spans_no_more_than_it() -> None:
    torch.manual_seed(4)
    matrix = spectrum(6, 9, [3.0, 0.5]).float()
    singular = torch.linalg.svdvals(exact_polar(matrix))
    torch.testing.assert_close(singular, torch.tensor([1.0, 1, 0, 0, 0, 0]), rtol=0, atol=1e-5)


def test_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        assert fast_precision(torch.device("cpu")) == expected


@pytest.mark.parametrize("shape", [(16, 16), (16, 24), (16, 40), (40, 16)])
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_the_flops_it_states_are_those_it_takes(shape: tuple[int, int], steps: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        polar_factor(torch.randn(3, *shape), steps=steps, precision=torch.float32)
    assert counter.get_total_flops() == 3 * polar_flops(*shape, steps=steps)
