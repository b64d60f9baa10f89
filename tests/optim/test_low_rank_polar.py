from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_low_rank_polar import low_rank_polar
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from shoestring.optim.low_rank_polar import low_rank_basis, qr_flops
from shoestring.optim.muon import Muon
from shoestring.optim.polar import Sketch, exact_polar, polar_factor, polar_flops
from shoestring.optim.polar_report import polar_report
from shoestring.optim.state import flatten_state, restore_state

SKETCH = Sketch(rank=4, oversampling=2, power=1, seed=7)


def omega(columns: int, sketch: Sketch) -> Tensor:
    return torch.randn(columns, sketch.size, generator=torch.Generator().manual_seed(sketch.seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(7, 20), st.integers(7, 20), st.integers(0, 1), st.integers(0, 999))
def test_agrees_with_the_reference(rows: int, columns: int, power: int, seed: int) -> None:
    torch.manual_seed(seed)
    least = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(3, size, least)).Q for size in (rows, columns))
    matrices = (u * torch.logspace(0, -1, least)) @ v.mT  # in float32, what the power has hidden cannot be compared
    sketch = replace(SKETCH, power=power, seed=seed)
    # twelve steps: the small factor converges, so that the reference may take it by SVD
    found = polar_factor(matrices, method="low_rank", steps=12, precision=torch.float32, sketch=sketch)
    for matrix, factor in zip(matrices, found, strict=True):
        wide, own = (matrix.T, factor.T) if rows > columns else (matrix, factor)
        expected = low_rank_polar(wide, omega(max(rows, columns), sketch), power)
        assert (own.double() - expected).norm() < 1e-2 * expected.norm()


def test_a_matrix_of_the_rank_of_the_sketch_has_its_exact_factor() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 30, 6) @ torch.randn(2, 6, 40)
    for given_matrices in (matrices, matrices.mT, 1e-12 * matrices):
        found = polar_factor(given_matrices, method="low_rank", steps=12, precision=torch.float32, sketch=SKETCH)
        torch.testing.assert_close(found, exact_polar(given_matrices), rtol=1e-3, atol=1e-3)


def test_power_brings_out_the_leading_directions() -> None:
    torch.manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(40, 40)).Q for _ in range(2))
    matrix = (u * torch.logspace(0, -1, 40)) @ v.T
    captured = []
    for power in (0, 1, 2):
        basis = low_rank_basis(matrix, size=8, power=power, seed=0)
        torch.testing.assert_close(basis.T @ basis, torch.eye(8), rtol=0, atol=1e-5)
        captured.append(float((basis.T @ u[:, :4]).square().sum() / 4))
    assert captured[0] < captured[1] < captured[2]
    assert captured[2] > 0.9


def test_a_sketch_no_smaller_than_the_matrix_is_polar_express_and_zeros_give_zeros() -> None:
    matrices = torch.randn(2, 6, 9)
    found = polar_factor(matrices, method="low_rank", precision=torch.float32, sketch=SKETCH)
    assert torch.equal(found, polar_factor(matrices, method="polar_express", precision=torch.float32))
    zeros = polar_factor(torch.zeros(2, 9, 12), method="low_rank", sketch=SKETCH)
    assert torch.equal(zeros, torch.zeros(2, 9, 12, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
@pytest.mark.parametrize("sketch", [SKETCH, Sketch(rank=8, oversampling=0, power=0), Sketch(rank=30)])
def test_the_flops_it_states_are_those_it_takes(shape: tuple[int, int], sketch: Sketch) -> None:
    with FlopCounterMode(display=False) as counter:
        polar_factor(torch.randn(3, *shape), method="low_rank", precision=torch.float32, sketch=sketch)
    stated = polar_flops(*shape, method="low_rank", sketch=sketch)
    own = qr_flops(24, sketch.size) if sketch.size < 24 else 0  # torch's counter does not know the decomposition
    assert counter.get_total_flops() == 3 * (stated - own)


SHAPES = [(24, 8), (8, 24), (16, 16), (3, 12, 12), (12, 12)]


def matrices(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def train(optimizer: Muon, parameters: list[nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def muon(parameters: list[nn.Parameter], **options: Any) -> Muon:
    return Muon(parameters, polar="low_rank", rank=4, oversampling=1, precision="float32", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_resumes_bit_exact_and_leaves_the_global_generator_alone(dtype: torch.dtype) -> None:
    parameters = matrices(dtype)
    optimizer = muon(parameters)
    train(optimizer, parameters, range(3))
    tensors, record = flatten_state(optimizer)
    twins = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    fresh = muon(twins)
    restore_state(fresh, tensors, record)
    state = torch.get_rng_state()
    train(optimizer, parameters, range(3, 6))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    train(fresh, twins, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(parameters, twins, strict=True))


def test_muon_draws_anew_at_each_step_and_for_each_seed() -> None:
    moved = {}
    for seed in (0, 1):
        parameter = nn.Parameter(torch.zeros(16, 16))
        optimizer = muon([parameter], seed=seed, momentum=0.0, weight_decay=0)
        places = [parameter.detach().clone()]
        for _ in range(2):
            train(optimizer, [parameter], range(1))  # the same gradient
            places.append(parameter.detach().clone())
        moved[seed] = [after - before for before, after in pairwise(places)]
        rank = int(torch.linalg.matrix_rank(moved[seed][0], rtol=1e-3))
        assert rank == 5
    assert not torch.allclose(moved[0][0], moved[0][1], atol=1e-4)
    assert not torch.allclose(moved[0][0], moved[1][0], atol=1e-4)


def test_muon_refuses_to_compile_it_and_counts_its_operations() -> None:
    with pytest.raises(ValueError, match="compile = True does not go with polar = 'low_rank'"):
        Muon([nn.Parameter(torch.ones(4, 4))], polar="low_rank", compile=True)
    sketch = Sketch(rank=4, oversampling=1)
    expected = sum(
        polar_flops(*shape[-2:], method="low_rank", sketch=sketch) * (shape[0] if len(shape) == 3 else 1)
        for shape in SHAPES
    )
    assert muon(matrices()).step_flops() == expected


def test_a_compiled_step_draws_the_same() -> None:
    plain, compiled = matrices()[2:3], matrices()[2:3]
    one, other = muon(plain), muon(compiled)
    other.step = torch.compile(other.step, backend="eager")  # type: ignore[method-assign]
    train(one, plain, range(3))
    train(other, compiled, range(3))
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)


def test_the_report_tells_the_methods_apart() -> None:
    torch.manual_seed(2)
    some = torch.randn(3, 24, 40)
    reports = {
        method: polar_report(some, method=method, precision=torch.float32, sketch=SKETCH, seconds=0.0)
        for method in ("svd", "polar_express", "jordan", "low_rank")
    }
    assert reports["svd"].error < 1e-5 < reports["polar_express"].error < reports["jordan"].error
    # six of 24 directions: the rest of U V^T is missing
    assert reports["low_rank"].error == pytest.approx((18 / 24) ** 0.5, abs=0.05)
    assert reports["svd"].descent == pytest.approx(1, abs=1e-4)
    assert 6 / 24 < reports["low_rank"].descent < 0.7
    assert all(report.largest_error >= report.error for report in reports.values())
    assert all(min(report.milliseconds, report.svd_milliseconds) > 0 for report in reports.values())


def test_muon_reports_each_shape() -> None:
    parameters = matrices()
    optimizer = muon(parameters)
    with pytest.raises(ValueError, match="take a step first"):
        optimizer.polar_report()
    train(optimizer, parameters, range(1))
    reports = optimizer.polar_report()
    found = {report.shape: report.matrices for report in reports}
    assert found == {(24, 8): 1, (8, 24): 1, (16, 16): 1, (12, 12): 4}
    assert all(report.method == "low_rank" for report in reports)
