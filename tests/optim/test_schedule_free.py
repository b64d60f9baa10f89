import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_schedule_free import schedule_free
from torch import Tensor, nn

from shoestring.optim.schedule_free import ScheduleFreeAdamW
from shoestring.optim.state import flatten_state, restore_state

SHAPES = [(6, 4), (5,), (2, 3, 4)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def random(steps: int) -> list[list[Tensor]]:
    torch.manual_seed(1)
    return [[torch.randn(shape) for shape in SHAPES] for _ in range(steps)]


def step(optimizer: ScheduleFreeAdamW, moved: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(moved, gradients, strict=True):
        parameter.grad = gradient.to(parameter.dtype).clone()
    optimizer.step()


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 0.99), st.floats(0.0, 0.99), st.sampled_from([0.0, 0.3]), st.booleans())
def test_agrees_with_the_reference(beta1: float, beta2: float, weight_decay: float, warming: bool) -> None:
    options: dict[str, Any] = {"beta1": beta1, "beta2": beta2, "epsilon": 1e-8, "weight_decay": weight_decay}
    lrs = [0.0, 0.01, 0.02, 0.03, 0.03, 0.01] if warming else [0.03] * 6
    moved, gradients = parameters(), random(6)
    before = [parameter.detach().double().flatten().tolist() for parameter in moved]
    optimizer = ScheduleFreeAdamW(moved, lr=0.03, **options)
    for lr, gradient in zip(lrs, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        step(optimizer, moved, gradient)
    training = [parameter.detach().clone() for parameter in moved]
    optimizer.eval()
    for index, parameter in enumerate(moved):
        own = [gradient[index].double().flatten().tolist() for gradient in gradients]
        # where the first lr is 0 its gradient still counts in v, and in the number of steps
        expected = schedule_free(before[index], own, lrs=[max(lr, 1e-30) for lr in lrs], **options)
        for found, values in zip((training[index], parameter.detach()), expected, strict=True):
            torch.testing.assert_close(found.flatten(), torch.tensor(values).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluating_changes_nothing(dtype: torch.dtype) -> None:
    still, evaluated = parameters(dtype), parameters(dtype)
    one, other = ScheduleFreeAdamW(still), ScheduleFreeAdamW(evaluated)
    other.eval()
    other.train()
    for number, gradient in enumerate(random(6)):
        step(one, still, gradient)
        step(other, evaluated, gradient)
        if number % 2:
            size = sum(state.numel() * 4 for values in other.state.values() for state in values.values())
            other.eval()
            other.eval()
            assert not torch.equal(evaluated[0], still[0])
            other.train()
            other.train()
            assert size == sum(state.numel() * 4 for values in other.state.values() for state in values.values())
    assert all(torch.equal(a, b) for a, b in zip(still, evaluated, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_saved_with_the_kept_weights_in_place_goes_on_exactly(dtype: torch.dtype) -> None:
    moved, gradients = parameters(dtype), random(6)
    optimizer = ScheduleFreeAdamW(moved)
    for gradient in gradients[:3]:
        step(optimizer, moved, gradient)
    optimizer.eval()
    tensors, record = flatten_state(optimizer)
    twins = copy.deepcopy(moved)
    fresh = ScheduleFreeAdamW(twins)
    restore_state(fresh, tensors, record)
    for each, own in ((optimizer, moved), (fresh, twins)):
        each.train()
        for gradient in gradients[3:]:
            step(each, own, gradient)
    assert all(torch.equal(a, b) for a, b in zip(moved, twins, strict=True))


def test_narrow_weights_are_rounded_from_a_float32_run() -> None:
    """As a float32 run from the same start on the same gradients, rounded once at the end and not at each step."""
    narrow, wide = parameters(torch.bfloat16), [nn.Parameter(p.detach().float()) for p in parameters(torch.bfloat16)]
    gradients = [[gradient.bfloat16().float() for gradient in step] for step in random(5)]
    one, other = ScheduleFreeAdamW(narrow), ScheduleFreeAdamW(wide)
    for gradient in gradients:
        step(one, narrow, gradient)
        step(other, wide, gradient)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(narrow, wide, strict=True))
    assert set(one.state) == set(narrow)
    one.eval()
    other.eval()
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(narrow, wide, strict=True))


def test_a_step_on_the_kept_weights_or_with_a_closure_is_refused() -> None:
    moved = parameters()
    optimizer = ScheduleFreeAdamW(moved)
    step(optimizer, moved, random(1)[0])
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)  # type: ignore[arg-type]
    optimizer.eval()
    with pytest.raises(ValueError, match=r"call train\(\)"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parameter_without_gradient_stays_and_one_added_later_trains(dtype: torch.dtype) -> None:
    moved = parameters(dtype)
    optimizer = ScheduleFreeAdamW(moved[:1])
    optimizer.add_param_group({"params": moved[1:]})
    moved[1].grad = torch.ones_like(moved[1])
    optimizer.step()
    assert not torch.equal(moved[1], parameters(dtype)[1])
    optimizer.eval()
    for index in (0, 2):
        assert torch.equal(moved[index], parameters(dtype)[index])
        assert not optimizer.state.get(moved[index])


def test_the_step_compiles() -> None:
    moved, twins = parameters(torch.bfloat16), parameters(torch.bfloat16)
    plain, compiled = ScheduleFreeAdamW(moved), ScheduleFreeAdamW(twins)
    compiled.step = torch.compile(compiled.step, backend="eager")  # type: ignore[method-assign]
    for gradient in random(3):
        step(plain, moved, gradient)
        step(compiled, twins, gradient)
    assert all(torch.equal(a, b) for a, b in zip(moved, twins, strict=True))
