from typing import Any

import pytest
import torch
from reference_lamb import lamb
from reference_run import assert_agrees
from torch import nn

from shoestring.optim.lamb import LAMB


@pytest.mark.parametrize(("weight_decay", "lower", "upper"), [(0.0, 0.0, None), (0.3, 0.0, None), (0.1, 3.0, 4.5)])
def test_agrees_with_the_reference_over_several_steps(weight_decay: float, lower: float, upper: float | None) -> None:
    options: dict[str, Any] = {
        "beta1": 0.8,
        "beta2": 0.9,
        "epsilon": 1e-3,
        "weight_decay": weight_decay,
        "lower": lower,
        "upper": upper,
    }
    assert_agrees(LAMB, lamb, lr=0.05, **options)


def test_a_layer_moves_by_lr_times_its_norm_whatever_the_gradient() -> None:
    for size in (1e-4, 1e3):
        weight = nn.Parameter(torch.randn(8, 5))
        before = weight.detach().clone()
        weight.grad = torch.randn(8, 5) * size
        LAMB([weight], lr=0.03, epsilon=1e-12).step()
        assert (weight - before).norm().item() == pytest.approx(0.03 * before.norm().item(), rel=1e-5)


def test_vectors_go_without_ratio_and_decay() -> None:
    gain = nn.Parameter(torch.full((4,), 7.0))
    gain.grad = torch.tensor([1.0, -2.0, 3.0, 0.5])
    LAMB([gain], lr=0.1, weight_decay=0.5, epsilon=1e-12).step()
    torch.testing.assert_close(gain.detach(), 7.0 - 0.1 * torch.tensor([1.0, -1.0, 1.0, 1.0]))


def test_a_layer_of_zeros_leaves_them() -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    weight.grad = torch.ones(3, 3)
    LAMB([weight], lr=0.1, epsilon=1e-12).step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), -0.1))


def test_without_a_gradient_to_speak_of_nothing_blows_up() -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    LAMB([weight], weight_decay=0.0).step()
    assert torch.equal(weight, torch.ones(3, 3))


def test_each_parameter_counts_its_own_steps() -> None:
    """One that gets its first gradient late is corrected for one step, not for all."""
    early, late = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LAMB([early, late], weight_decay=0.0, lr=0.1)
    gradient = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    for step in range(3):
        early.grad, late.grad = gradient.clone(), gradient.clone() if step == 2 else None
        optimizer.step()
    alone = nn.Parameter(torch.ones(2, 2))
    alone.grad = gradient.clone()
    LAMB([alone], weight_decay=0.0, lr=0.1).step()
    assert torch.equal(late, alone)
    assert [optimizer.state[parameter]["step"] for parameter in (early, late)] == [3, 1]
