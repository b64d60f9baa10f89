from typing import Any

import pytest
import torch
from reference_muon import muon
from torch import Tensor, nn

from shoestring.optim import muon as module
from shoestring.optim.muon import Muon

SHAPES = [(24, 8), (8, 24), (16, 16), (24, 8), (3, 12, 5), (12, 5)]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def matrices(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def random_gradients(steps: int) -> list[list[Tensor]]:
    torch.manual_seed(1)
    return [[torch.randn(shape) for shape in SHAPES] for _ in range(steps)]


@pytest.mark.parametrize("scaling", ["spectral", "rms"])
@pytest.mark.parametrize(("nesterov", "weight_decay"), [(True, 0.0), (False, 0.2)])
def test_agrees_with_the_reference_over_several_steps(scaling: str, nesterov: bool, weight_decay: float) -> None:
    options: dict[str, Any] = {
        "lr": 0.05,
        "momentum": 0.9,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "scaling": scaling,
    }
    parameters, gradients = matrices(), random_gradients(5)
    before = [parameter.detach().clone() for parameter in parameters]
    train(Muon(parameters, precision="float32", **options), parameters, gradients)
    for index, parameter in enumerate(parameters):
        rows, columns = parameter.shape[-2:]
        starts = before[index].reshape(-1, rows, columns)
        for layer, found in enumerate(parameter.detach().reshape(-1, rows, columns)):
            own = [step[index].reshape(-1, rows, columns)[layer] for step in gradients]
            torch.testing.assert_close(found.double(), muon(starts[layer], own, **options), rtol=1e-4, atol=1e-4)


def test_agrees_with_the_muon_of_torch() -> None:
    """Both orthogonalise in bfloat16 and round differently, so to within hundredths of the way."""
    ours, theirs = matrices(), matrices()
    flat = [index for index, parameter in enumerate(ours) if parameter.ndim == 2]
    gradients = random_gradients(4)
    train(Muon(ours, lr=0.1, weight_decay=0.1, precision="bfloat16"), ours, gradients)
    chosen = [theirs[index] for index in flat]
    train(torch.optim.Muon(chosen, lr=0.1, weight_decay=0.1), chosen, [[step[i] for i in flat] for step in gradients])
    for index in flat:
        assert (ours[index] - theirs[index]).norm() < 0.08 * (ours[index] - matrices()[index]).norm()


@pytest.mark.parametrize("limit", [1, 200])
def test_the_size_of_the_batches_changes_nothing(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    together, apart, gradients = matrices(), matrices(), random_gradients(3)
    train(Muon(together, precision="float32"), together, gradients)
    monkeypatch.setitem(module.BATCH, "cpu", limit)
    train(Muon(apart, precision="float32"), apart, gradients)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_svd_moves_every_direction_alike() -> None:
    parameter = nn.Parameter(torch.zeros(6, 4))
    parameter.grad = torch.randn(6, 4)
    Muon([parameter], lr=0.1, polar="svd", precision="float32", scaling="rms").step()
    moved = torch.linalg.svdvals(parameter.detach())
    torch.testing.assert_close(moved, torch.full((4,), 0.1 * 0.2 * 6**0.5))


def test_a_vector_is_refused_by_name() -> None:
    named = [("w", nn.Parameter(torch.ones(2, 2))), ("gain", nn.Parameter(torch.ones(2)))]
    with pytest.raises(ValueError, match=r"^muon takes matrices only: parameter gain has shape \(2,\)$"):
        Muon(named)
    with pytest.raises(ValueError, match=r"parameter 1 has shape \(2,\)"):
        Muon([parameter for _, parameter in named])


def test_a_parameter_without_gradient_stays_and_gradients_are_left_alone() -> None:
    still, moving = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    moving.grad = torch.randn(3, 3)
    copy = moving.grad.clone()
    optimizer = Muon([still, moving])
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 3))
    assert still not in optimizer.state
    assert not torch.equal(moving, torch.ones(3, 3))
    assert torch.equal(moving.grad, copy)


def test_momentum_is_float32_under_bfloat16_weights_and_loads_exactly() -> None:
    parameters, gradients = matrices(torch.bfloat16), random_gradients(2)
    optimizer = Muon(parameters)
    train(optimizer, parameters, gradients)
    twins = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = Muon(twins)
    other.load_state_dict(optimizer.state_dict())
    for parameter, twin in zip(parameters, twins, strict=True):
        momentum = optimizer.state[parameter]["momentum"]
        assert momentum.dtype == torch.float32
        assert not torch.equal(momentum, momentum.bfloat16().float())
        assert torch.equal(other.state[twin]["momentum"], momentum)


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="no closure"):
        Muon(matrices()).step(lambda: 0.0)  # type: ignore[arg-type]


@pytest.mark.slow
def test_compiled_orthogonalisation_agrees() -> None:
    plain, compiled, gradients = matrices(), matrices(), random_gradients(2)
    train(Muon(plain, precision="float32"), plain, gradients)
    train(Muon(compiled, precision="float32", compile=True), compiled, gradients)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
