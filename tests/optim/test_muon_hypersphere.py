import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_muon_hypersphere import muon_hypersphere
from torch import Tensor, nn

from shoestring.optim.muon_hypersphere import MuonHypersphere

SHAPES = [(24, 8), (8, 24), (16, 16), (24, 8), (3, 12, 5), (12, 5)]


def matrices(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter((scale * torch.randn(shape)).to(dtype)) for shape in SHAPES]


def random_gradients(steps: int) -> list[list[Tensor]]:
    torch.manual_seed(1)
    return [[torch.randn(shape) for shape in SHAPES] for _ in range(steps)]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def norms(parameters: list[nn.Parameter]) -> Tensor:
    flat = [p.detach().float().reshape(-1, *p.shape[-2:]) for p in parameters]
    return torch.cat([torch.linalg.matrix_norm(each) for each in flat])


@pytest.mark.parametrize(("nesterov", "weight_decay"), [(True, 0.0), (False, 0.0), (True, 0.5)])
def test_agrees_with_the_reference_over_several_steps(nesterov: bool, weight_decay: float) -> None:
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": weight_decay}
    parameters, gradients = matrices(), random_gradients(5)
    before = [parameter.detach().clone() for parameter in parameters]
    train(MuonHypersphere(parameters, precision="float32", **options), parameters, gradients)
    for index, parameter in enumerate(parameters):
        rows, columns = parameter.shape[-2:]
        starts = before[index].reshape(-1, rows, columns)
        for layer, found in enumerate(parameter.detach().reshape(-1, rows, columns)):
            own = [step[index].reshape(-1, rows, columns)[layer] for step in gradients]
            torch.testing.assert_close(
                found.double(), muon_hypersphere(starts[layer], own, **options), rtol=1e-4, atol=1e-4
            )


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-4, 2), st.floats(1e-3, 1e3), st.floats(0, 1))
def test_norms_stay_whatever_the_rate_the_scale_and_the_decay(lr: float, scale: float, decay: float) -> None:
    parameters = matrices(scale=scale)
    before = norms(parameters)
    train(MuonHypersphere(parameters, lr=lr, weight_decay=decay, precision="float32"), parameters, random_gradients(3))
    torch.testing.assert_close(norms(parameters), before, rtol=1e-5, atol=0)


def test_bfloat16_weights_do_not_drift_off() -> None:
    parameters, gradients = matrices(torch.bfloat16), random_gradients(40)
    before = norms(parameters)
    optimizer = MuonHypersphere(parameters, lr=0.05)
    train(optimizer, parameters, gradients)
    torch.testing.assert_close(norms(parameters), before, rtol=3e-3, atol=0)
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}


def test_the_learning_rate_is_a_share_of_the_norm() -> None:
    """A matrix a thousand times as large takes the same path; and a small step turns it by lr radians at most."""
    small, large, gradients = matrices(), matrices(scale=1000.0), random_gradients(3)
    train(MuonHypersphere(small, lr=0.05, precision="float32"), small, gradients)
    train(MuonHypersphere(large, lr=0.05, precision="float32"), large, gradients)
    for one, other in zip(small, large, strict=True):
        torch.testing.assert_close(1000 * one, other, rtol=1e-4, atol=1e-2)
    parameter = nn.Parameter(torch.randn(6, 9))
    start = parameter.detach().clone()
    parameter.grad = torch.randn(6, 9)
    MuonHypersphere([parameter], lr=0.01, precision="float32").step()
    cosine = nn.functional.cosine_similarity(start.flatten(), parameter.detach().flatten(), dim=0)
    assert 0.003 < math.acos(min(1.0, cosine.item())) < 0.0101


def test_weight_decay_is_second_order() -> None:
    moved = []
    for decay in (0.0, 1.0):
        parameters = matrices()
        train(
            MuonHypersphere(parameters, lr=1e-2, weight_decay=decay, precision="float32"),
            parameters,
            random_gradients(1),
        )
        moved.append(torch.cat([p.detach().flatten() for p in parameters]))
    start = torch.cat([p.detach().flatten() for p in matrices()])
    assert (moved[0] - moved[1]).norm() < 0.02 * (moved[0] - start).norm()


def test_a_matrix_of_zeros_grows_to_its_sphere_and_stays() -> None:
    parameter, radius = nn.Parameter(torch.zeros(16, 8)), 0.5 * 16**0.5
    torch.manual_seed(0)
    direction = torch.randn(16, 8)
    optimizer = MuonHypersphere([parameter], lr=0.1, zero_radius=0.5, precision="float32")
    sizes = []
    for step in range(30):
        parameter.grad = direction if step < 20 else torch.randn(16, 8)
        optimizer.step()
        sizes.append(parameter.detach().norm().item())
    assert sizes[0] == pytest.approx(0.1 * radius)
    assert sizes[4] == pytest.approx(0.5 * radius)
    assert sizes == sorted(sizes[:11]) + sizes[11:]
    assert sizes[11:] == pytest.approx([radius] * 19)
    assert max(sizes) <= radius * 1.00001


def test_without_a_gradient_worth_the_name_nothing_moves() -> None:
    moving, zero = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.zeros(5, 4))
    start = moving.detach().clone()
    moving.grad, zero.grad = torch.zeros(5, 4), torch.zeros(5, 4)
    MuonHypersphere([moving, zero], lr=0.1).step()
    torch.testing.assert_close(moving.detach(), start)
    assert torch.equal(zero, torch.zeros(5, 4))


def test_the_radius_is_of_the_first_step_and_is_saved() -> None:
    parameters, gradients = matrices(), random_gradients(4)
    optimizer = MuonHypersphere(parameters, lr=0.1, precision="float32")
    train(optimizer, parameters, gradients[:2])
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.2)  # as if another had moved it: the sphere is still the old one
    twins = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = MuonHypersphere(twins, lr=0.1, precision="float32")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, parameters, gradients[2:])
    train(other, twins, gradients[2:])
    torch.testing.assert_close(norms(parameters), norms(matrices()), rtol=1e-5, atol=0)
    assert all(torch.equal(one, two) for one, two in zip(parameters, twins, strict=True))


def test_the_radius_outlives_a_state_that_is_forgotten() -> None:
    parameters, gradients = matrices(), random_gradients(3)
    optimizer = MuonHypersphere(parameters, lr=0.1, precision="float32")
    optimizer.anchor()
    for step in gradients:
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.3)  # as if another had moved it, before the first step too
        optimizer.anchor()
        train(optimizer, parameters, [step])
        for parameter in parameters:
            optimizer.forget(parameter)
        assert all(state.keys() == {"radius"} for state in optimizer.state.values())
    torch.testing.assert_close(norms(parameters), norms(matrices()), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_a_compiled_step_agrees() -> None:
    plain, compiled, gradients = matrices(), matrices(), random_gradients(3)
    train(MuonHypersphere(plain, precision="float32"), plain, gradients)
    optimizer = MuonHypersphere(compiled, precision="float32")
    step = torch.compile(optimizer.step, backend="eager")
    for each in gradients:
        for parameter, gradient in zip(compiled, each, strict=True):
            parameter.grad = gradient
        step()
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other)
    torch.compiler.reset()


def test_a_vector_is_refused_and_the_options_reach_the_groups() -> None:
    with pytest.raises(ValueError, match=r"takes matrices only: parameter 0 has shape \(2,\)"):
        MuonHypersphere([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="low_rank"):
        MuonHypersphere(matrices(), polar="low_rank")  # type: ignore[arg-type]
    optimizer = MuonHypersphere(matrices()[:2], zero_radius=2.0)
    optimizer.add_param_group({"params": matrices()[2:3]})
    assert [group["zero_radius"] for group in optimizer.param_groups] == [2.0, 2.0]
