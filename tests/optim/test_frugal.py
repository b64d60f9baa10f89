import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_frugal import frugal
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.optim.adamw import AdamW
from shoestring.optim.frugal import Frugal
from shoestring.optim.frugal_selection import chosen_blocks, count, density_within, projection, state_bytes

SHAPES = [(12, 8), (8, 12), (3, 10, 5), (6, 6)]
ADAM: dict[str, Any] = {"lr": 0.05, "beta1": 0.9, "beta2": 0.8, "epsilon": 1e-8, "weight_decay": 0.1}


def matrices(shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def random_gradients(steps: int, shapes: list[tuple[int, ...]] = SHAPES) -> list[list[Tensor]]:
    torch.manual_seed(1)
    return [[torch.randn(shape) for shape in shapes] for _ in range(steps)]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def taken(optimizer: torch.optim.Optimizer) -> int:
    return sum(x.nbytes for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))


@pytest.mark.parametrize("selection", ["columns", "random", "svd"])
def test_agrees_with_the_reference_over_several_periods(selection: Any) -> None:
    options: dict[str, Any] = {**ADAM, "free_lr_ratio": 0.3, "every": 3}
    parameters, gradients = matrices(), random_gradients(8)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = Frugal(parameters, selection=selection, density=0.4, **options)
    projectors: list[list[Tensor]] = [[] for _ in parameters]
    for number, step in enumerate(gradients):
        train(optimizer, parameters, [step])
        if number % 3 == 0:
            for parameter, own in zip(parameters, projectors, strict=True):
                state = optimizer.state[parameter]
                if selection == "columns":
                    own.append(torch.eye(parameter.shape[-1])[state["columns"]])
                else:
                    own.append(state["projection"].clone())
    for index, parameter in enumerate(parameters):
        rows, columns = parameter.shape[-2:]
        turned = selection != "columns" and rows < columns
        for layer, found in enumerate(parameter.detach().reshape(-1, rows, columns)):
            parts = [x.reshape(-1, rows, columns)[layer] for x in (before[index], *(step[index] for step in gradients))]
            start, *own = [part.T if turned else part for part in parts]
            chosen = [p.reshape(-1, *p.shape[-2:])[layer if p.ndim > 2 else 0] for p in projectors[index]]
            expected = frugal(start, own, chosen, **options)
            torch.testing.assert_close(found.double(), expected.T if turned else expected, rtol=1e-3, atol=1e-3)


def test_blocks_are_adam_or_signs() -> None:
    parameters, gradients = matrices(), random_gradients(2)
    optimizer = Frugal(parameters, selection="blocks", density=0.6, free_lr_ratio=0.5, **ADAM)
    train(optimizer, parameters, gradients)
    active = ["momentum" in optimizer.state[parameter] for parameter in parameters]
    assert 0 < sum(active) < len(active)
    adam, signs = matrices(), matrices()
    train(AdamW(adam, **ADAM), adam, gradients)
    for step in gradients:
        for parameter, gradient in zip(signs, step, strict=True):
            parameter.data -= 0.05 * (0.1 * parameter.data + 0.5 * gradient.sign())
    for moved, own, one, other in zip(parameters, active, adam, signs, strict=True):
        torch.testing.assert_close(moved, one if own else other, rtol=1e-4, atol=1e-5)
    assert taken(optimizer) <= state_bytes(parameters, "blocks", 0.6)


@pytest.mark.parametrize("selection", ["columns", "random", "svd", "blocks"])
def test_the_whole_is_adam_and_nothing_is_signs(selection: Any) -> None:
    gradients = random_gradients(3)
    whole, none, adam, start = matrices(), matrices(), matrices(), matrices()
    train(Frugal(whole, selection=selection, density=1.0, **ADAM), whole, gradients)
    train(Frugal(none, selection=selection, density=0.0, lr=0.5, weight_decay=0.0), none, gradients)
    train(AdamW(adam, **ADAM), adam, gradients)
    signs = [sum(step[index].sign() for step in gradients) for index in range(len(start))]
    if selection in ("columns", "blocks"):
        for one, other in zip(whole, adam, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, first, sign in zip(none, start, signs, strict=True):
        torch.testing.assert_close(one.detach(), first.detach() - 0.5 * sign)


def test_the_choice_is_made_anew_and_the_moments_start_again() -> None:
    parameter = nn.Parameter(torch.zeros(6, 40))
    optimizer = Frugal([parameter], every=4)
    chosen = []
    for step in range(12):
        train(optimizer, [parameter], [[torch.full((6, 40), float(step))]])
        state = optimizer.state[parameter]
        chosen.append(state["columns"].tolist())
        assert state["step"] == step % 4 + 1
        if step % 4 == 0:
            torch.testing.assert_close(state["momentum"], torch.full((6, 10), 0.1 * step))
    assert [chosen[0]] * 4 + [chosen[4]] * 4 + [chosen[8]] * 4 == chosen
    assert len({tuple(columns) for columns in chosen}) == 3


def test_choices_come_from_the_seed_alone() -> None:
    def columns(seed: int) -> list[Tensor]:
        parameters = matrices([(4, 64), (4, 64)])
        optimizer = Frugal(parameters, seed=seed)
        train(optimizer, parameters, random_gradients(1, [(4, 64), (4, 64)]))
        return [optimizer.state[parameter]["columns"] for parameter in parameters]

    first = columns(0)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = columns(0)
    torch.manual_seed(99)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], columns(1)[0])


@pytest.mark.parametrize("selection", ["columns", "random", "svd", "blocks"])
def test_a_budget_of_bytes_is_kept_and_used(selection: Any) -> None:
    for budget in (1200, 2000, 3000):
        parameters = matrices()
        optimizer = Frugal(
            [{"params": parameters[:2]}, {"params": parameters[2:]}], selection=selection, state_bytes_budget=budget
        )
        density = optimizer.param_groups[0]["density"]
        assert density == optimizer.param_groups[1]["density"]
        train(optimizer, parameters, random_gradients(1))
        assert taken(optimizer) <= budget
        if selection != "blocks":
            assert taken(optimizer) == state_bytes(parameters, selection, density)
            assert density == 1 or state_bytes(parameters, selection, density + 0.02 + 1 / 5) > budget


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    budget=st.integers(1, 4000),
    selection=st.sampled_from(["columns", "random", "svd"]),
)
def test_no_larger_density_fits_a_budget(shapes: list[tuple[int, int]], budget: int, selection: Any) -> None:
    weights = [torch.zeros(shape) for shape in shapes]
    every = sorted({part / side for side in range(1, 10) for part in range(1, side + 1)})
    fitting = [d for d in every if 0 < state_bytes(weights, selection, d) <= budget]
    if not fitting:
        with pytest.raises(UsageError, match=f"a budget of {budget} bytes"):
            density_within(budget, weights, selection)
    else:
        found = density_within(budget, weights, selection)
        assert state_bytes(weights, selection, found) == state_bytes(weights, selection, fitting[-1])


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8), density=st.floats(0, 1), seed=st.integers(0, 2**62))
def test_chosen_blocks_fit_and_leave_no_room(sizes: list[int], density: float, seed: int) -> None:
    chosen = chosen_blocks(sizes, density, torch.Generator().manual_seed(seed))
    left = density * sum(sizes) - sum(sizes[place] for place in chosen)
    assert left > -1e-6
    assert all(size > math.floor(left + 1e-6) for place, size in enumerate(sizes) if place not in chosen)


def test_a_projection_has_orthonormal_rows_and_svd_takes_the_leading_ones() -> None:
    torch.manual_seed(0)
    strong = torch.randn(10, 1) @ torch.randn(1, 6)
    for gradient in (strong + 0.01 * torch.randn(10, 6), (strong + 0.01 * torch.randn(10, 6)).T):
        for selection in ("random", "svd"):
            rows = projection(gradient, selection, 0.5, torch.Generator().manual_seed(0))
            torch.testing.assert_close(rows @ rows.T, torch.eye(3), atol=1e-5, rtol=0)
        tall = gradient if len(gradient) == 10 else gradient.T
        assert (tall @ rows.T).norm() > 0.999 * gradient.norm()


def test_a_share_is_rounded_down_but_not_by_the_rounding_of_floats() -> None:
    assert [count(10, density) for density in (0.3, 0.29, 0.7, 0.1, 0.0, 1.0)] == [3, 2, 7, 1, 0, 10]
    assert all(count(side, part / side) == part for side in range(1, 400) for part in range(side + 1))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^frugal takes matrices only: parameter 1 has shape \(2,\)$"):
        Frugal([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))])
    with pytest.raises(UsageError, match="a budget of 10 bytes holds no part of the state"):
        Frugal(matrices(), state_bytes_budget=10)
    with pytest.raises(UsageError, match="holds the state of no weight: the smallest takes 288"):
        Frugal(matrices(), state_bytes_budget=287, selection="blocks")


def test_step_flops_counts_the_projections() -> None:
    parameters = [nn.Parameter(torch.zeros(2, 20, 8))]
    assert Frugal(parameters).step_flops() == 0
    assert Frugal(parameters, selection="svd").step_flops() == 6 * 2 * 20 * 8 * 2


def test_a_compiled_step_agrees() -> None:
    gradients = [[torch.randn(6, 8), torch.randn(6, 8)] for _ in range(5)]
    plain, compiled = (matrices([(6, 8), (6, 8)]) for _ in range(2))
    train(Frugal(plain, every=3), plain, gradients)
    optimizer = Frugal(compiled, every=3)
    optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
    train(optimizer, compiled, gradients)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other)
