import copy
from typing import Any

import pytest
import torch
from reference_soap import soap
from torch import Tensor, nn

from shoestring.optim import kronecker
from shoestring.optim.adamw import AdamW
from shoestring.optim.kronecker import eigenbasis, refreshed_basis, rotate, rotate_back
from shoestring.optim.soap import SOAP

SHAPES = [(12, 6), (6, 12), (8, 8), (12, 6), (3, 10, 5), (10, 5)]


def matrices(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def random_gradients(steps: int) -> list[list[Tensor]]:
    """With directions of very different size, as the gradients of a model have."""
    torch.manual_seed(1)
    spreads = [torch.logspace(0, -1.5, shape[-1]) for shape in SHAPES]
    return [[torch.randn(s) * spread for s, spread in zip(SHAPES, spreads, strict=True)] for _ in range(steps)]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize(("every", "max_side"), [(3, 100), (4, 7), (3, 11)])
def test_agrees_with_the_reference_over_several_steps(every: int, max_side: int) -> None:
    options: dict[str, Any] = {
        "lr": 0.05,
        "beta1": 0.9,
        "beta2": 0.8,
        "epsilon": 1e-8,
        "weight_decay": 0.1,
        "every": every,
    }
    parameters, gradients = matrices(), random_gradients(9)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = SOAP(parameters, max_side=max_side, **options)
    train(optimizer, parameters, gradients[:1])
    bases = [
        [copy.deepcopy(optimizer.state[parameter].get(key)) for key in ("left_basis", "right_basis")]
        for parameter in parameters
    ]
    train(optimizer, parameters, gradients[1:])
    for index, parameter in enumerate(parameters):
        rows, columns = parameter.shape[-2:]
        assert [basis is not None for basis in bases[index]] == [rows <= max_side, columns <= max_side]
        starts = before[index].reshape(-1, rows, columns)
        for layer, found in enumerate(parameter.detach().reshape(-1, rows, columns)):
            own = [step[index].reshape(-1, rows, columns)[layer] for step in gradients]
            first: Any = tuple(None if q is None else q.reshape(-1, *q.shape[-2:])[layer] for q in bases[index])
            expected = soap(starts[layer], own, first_bases=first, **options)
            torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_first_gradient_makes_the_bases_and_moves_nothing() -> None:
    parameters, gradients = matrices(), random_gradients(2)
    optimizer = SOAP(parameters)
    train(optimizer, parameters, gradients[:1])
    assert all(torch.equal(now, was) for now, was in zip(parameters, matrices(), strict=True))
    for parameter in parameters:
        state = optimizer.state[parameter]
        for side in ("left", "right"):
            turned = state[side + "_basis"].mT @ state[side] @ state[side + "_basis"]
            eigenvalues = turned.diagonal(dim1=-2, dim2=-1)
            torch.testing.assert_close(turned, torch.diag_embed(eigenvalues), atol=1e-5, rtol=0)
            assert (eigenvalues.diff(dim=-1) <= 1e-6).all()
    train(optimizer, parameters, gradients[1:])
    assert not any(torch.equal(now, was) for now, was in zip(parameters, matrices(), strict=True))


def test_without_rotation_it_is_adam() -> None:
    """From the second gradient on, as the first is used up."""
    ours, theirs, gradients = matrices(), matrices(), random_gradients(6)
    options: dict[str, Any] = {"lr": 0.03, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.2}
    train(SOAP(ours, max_side=1, **options), ours, gradients)
    train(AdamW(theirs, **options), theirs, gradients[1:])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_its_steps_turn_with_the_gradients() -> None:
    """What Adam does not do: in other coordinates the same steps are taken. Full rank, so no basis is arbitrary."""
    torch.manual_seed(2)
    u, v = (torch.linalg.qr(torch.randn(8, 8)).Q for _ in range(2))
    gradients = [torch.randn(8, 8) for _ in range(8)]
    one, other = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(8, 8))
    train(SOAP([one], every=2), [one], [[gradient] for gradient in gradients])
    train(SOAP([other], every=2), [other], [[u @ gradient @ v] for gradient in gradients])
    torch.testing.assert_close(u @ one @ v, other.detach(), rtol=1e-3, atol=1e-4)
    assert (one - other).norm() > 0.5 * one.norm()


def test_a_refresh_turns_the_moments_with_the_basis() -> None:
    """M' in the basis is the same M without it, so with beta2 = 0 and epsilon large a refresh is not seen at all."""
    often, never = matrices(), matrices()
    gradients = [
        [1e-4 * gradient for gradient in step] for step in random_gradients(7)
    ]  # beside which epsilon is large
    options: dict[str, Any] = {"epsilon": 1.0, "lr": 1e4, "beta1": 0.9, "weight_decay": 0.0}
    train(SOAP(often, every=1, **options), often, gradients)
    train(SOAP(never, every=100, **options), never, gradients)
    for one, other, start in zip(often, never, matrices(), strict=True):
        torch.testing.assert_close(one - start, other - start, rtol=2e-3, atol=2e-3)


def test_power_iteration_reaches_the_eigenvectors_and_says_where_columns_went() -> None:
    torch.manual_seed(0)
    true = torch.linalg.qr(torch.randn(2, 6, 6)).Q
    factors = true @ torch.diag(0.3 ** torch.arange(6)) @ true.mT
    shuffle = torch.tensor([3, 0, 5, 1, 2, 4])
    basis, order = refreshed_basis(factors, eigenbasis(factors)[:, :, shuffle])
    assert torch.equal(shuffle[order], torch.arange(6).expand(2, 6))
    for _ in range(3):
        basis, order = refreshed_basis(factors, basis)
        assert torch.equal(order, torch.arange(6).expand(2, 6))
    torch.testing.assert_close((basis * true).sum(-2).abs(), torch.ones(2, 6), atol=1e-3, rtol=0)
    x = torch.randn(2, 6, 6)
    torch.testing.assert_close(
        rotate_back(rotate(x, {"left": true, "right": basis}), {"left": true, "right": basis}), x
    )


def test_directions_that_no_gradient_told_are_the_same_whatever_was_rounded() -> None:
    torch.manual_seed(0)
    slopes, noise = torch.randn(2, 24, 4, dtype=torch.float64), torch.randn(2, 24, 24, dtype=torch.float64)
    factors = slopes @ slopes.mT
    one, other = eigenbasis(factors), eigenbasis(factors + 1e-13 * (noise + noise.mT))
    torch.testing.assert_close(one.mT @ one, torch.eye(24, dtype=torch.float64).expand(2, 24, 24))
    torch.testing.assert_close((one * other).sum(-2)[:, :4].abs(), torch.ones(2, 4, dtype=torch.float64))
    torch.testing.assert_close(one[:, :, 4:], other[:, :, 4:], rtol=0, atol=1e-9)


def test_rounding_is_not_made_larger() -> None:
    """Of matrices with a side so long that few gradients leave most of it untold, in float64."""

    def after(noise: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        weight = torch.nn.Parameter(torch.zeros(24, 4, dtype=torch.float64))
        optimizer = SOAP([weight], lr=0.1)
        for _ in range(12):
            slope = torch.randn(24, 4, generator=generator, dtype=torch.float64)
            weight.grad = slope * (1 + noise * torch.randn(24, 4, generator=generator, dtype=torch.float64))
            optimizer.step()
        return weight.detach()

    torch.testing.assert_close(after(0.0), after(1e-12), rtol=0, atol=1e-7)


def test_a_refresh_leaves_directions_that_no_gradient_was_in() -> None:
    """The null space of a factor of low rank: its columns stay together, and nearly where they are."""
    torch.manual_seed(0)
    slopes = torch.randn(1, 32, 4)
    factors, bases = slopes @ slopes.mT, torch.linalg.qr(torch.cat((slopes, torch.randn(1, 32, 28)), -1)).Q
    basis, order = refreshed_basis(factors, bases)
    turned = (bases.mT @ basis)[0, 4:, 4:]
    assert sorted(order[0, 4:].tolist()) == list(range(4, 32))
    kept = turned.abs().amax(0)
    assert float(kept.min()) > 0.999


@pytest.mark.parametrize("limit", [1, 200])
def test_the_size_of_the_stacks_changes_nothing(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square matrices only: the null space of a first factor has no basis of its own."""
    torch.manual_seed(0)
    shapes = [(8, 8), (3, 8, 8), (8, 8)]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(5)]
    together, apart = ([nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    train(SOAP(together, every=2), together, gradients)
    monkeypatch.setattr(kronecker, "STACK", limit)
    train(SOAP(apart, every=2), apart, gradients)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_state_of_a_stack_is_stored_once_and_survives_a_missing_gradient() -> None:
    parameters, alone, gradients = matrices(), matrices(), random_gradients(6)
    optimizer = SOAP(parameters)
    train(optimizer, parameters, gradients[:2])
    first, second = (optimizer.state[parameters[index]]["left_basis"] for index in (0, 3))
    address = first.data_ptr()
    assert second.data_ptr() == address + first.nbytes
    train(optimizer, parameters, gradients[2:3])
    assert optimizer.state[parameters[0]]["left_basis"].data_ptr() == address
    for step in gradients[3:]:
        parameters[0].grad, parameters[3].grad = None, step[3]
        optimizer.step()
    single = SOAP([alone[3]])
    train(single, [alone[3]], [[step[3]] for step in gradients])
    torch.testing.assert_close(parameters[3], alone[3], rtol=1e-4, atol=1e-5)
    assert optimizer.state[parameters[0]]["step"] == 3


def test_a_gradient_of_zeros_moves_nothing_and_a_vector_is_refused() -> None:
    parameters = matrices()
    train(SOAP(parameters, every=1, weight_decay=0.0), parameters, [[torch.zeros_like(p) for p in parameters]] * 3)
    assert all(torch.equal(now, was) for now, was in zip(parameters, matrices(), strict=True))
    with pytest.raises(ValueError, match=r"^soap takes matrices only: parameter gain has shape \(2,\)$"):
        SOAP([("w", nn.Parameter(torch.ones(2, 2))), ("gain", nn.Parameter(torch.ones(2)))])


def test_step_flops_counts_the_products_and_the_refresh() -> None:
    w = nn.Parameter(torch.zeros(4, 20, 10))
    assert SOAP([w], every=10**9, max_side=15).step_flops() == 4 * 6 * 20 * 10 * 10
    assert SOAP([w], every=1, max_side=15).step_flops() == round(4 * (8 * 20 * 10 * 10 + (4 + 8 / 3) * 10**3))


def test_a_compiled_step_agrees() -> None:
    torch.manual_seed(0)
    gradients = [[torch.randn(6, 6), torch.randn(6, 6)] for _ in range(5)]
    plain, compiled = ([nn.Parameter(torch.zeros(6, 6)) for _ in range(2)] for _ in range(2))
    train(SOAP(plain, every=2), plain, gradients)
    optimizer = SOAP(compiled, every=2)
    optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
    train(optimizer, compiled, gradients)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_compile_option_agrees() -> None:
    plain, compiled, gradients = matrices(), matrices(), random_gradients(4)
    train(SOAP(plain), plain, gradients)
    train(SOAP(compiled, compile=True), compiled, gradients)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
