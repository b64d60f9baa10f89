"""AdamP and SGDP: what they project, and that they do it as the paper's algorithms."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_projection import adamp, project, sgdp
from reference_run import assert_agrees, weights_and_gradients
from torch import Tensor, nn

from shoestring.optim.adamp import AdamP
from shoestring.optim.projection import radial_part
from shoestring.optim.sgdp import SGDP

ADAMP: dict[str, Any] = {
    "beta1": 0.8,
    "beta2": 0.9,
    "epsilon": 1e-4,
    "weight_decay": 0.3,
    "delta": 0.1,
    "decay_ratio": 0.2,
}
SGDP_OPTIONS: dict[str, Any] = {"momentum": 0.8, "weight_decay": 0.1, "delta": 0.1, "decay_ratio": 0.2}


def tangential(weight: Tensor, gradient: Tensor, by: str) -> Tensor:
    """The gradient without what of it is along the weight, row by row or over all."""
    w, g = weight.flatten(1).double(), gradient.flatten(1).double()
    if by == "layer":
        w, g = w.view(1, -1), g.view(1, -1)
    return (g - (g * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w).view_as(weight).to(gradient.dtype)


@pytest.mark.parametrize("delta", [0.0, 0.1, 100.0])
def test_adamp_agrees_with_the_reference_over_several_steps(delta: float) -> None:
    """delta = 0 projects nothing, a large one everything, channel by channel."""
    assert_agrees(AdamP, adamp, lr=0.05, **{**ADAMP, "delta": delta})


@pytest.mark.parametrize("delta", [0.0, 0.1, 100.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdp_agrees_with_the_reference_over_several_steps(delta: float, nesterov: bool) -> None:
    assert_agrees(SGDP, sgdp, lr=0.05, nesterov=nesterov, **{**SGDP_OPTIONS, "delta": delta})


@pytest.mark.parametrize("by", ["channel", "layer"])
def test_both_agree_where_the_first_gradient_is_tangential(by: str) -> None:
    """Then the test finds the first step scale-invariant, by channel or only by layer, and the later ones as they fall."""
    weights, gradients = weights_and_gradients(torch.float32)
    for place, weight in enumerate(weights):
        if weight.ndim > 1:
            gradients[0][place] = tangential(weight, gradients[0][place], by)
    found = [project(w, g, g, 0.1)[1] for w, g in zip(weights, gradients[0], strict=True)]
    assert found == [weight.ndim > 1 for weight in weights]
    assert_agrees(AdamP, adamp, weights, gradients, lr=0.05, **ADAMP)
    assert_agrees(SGDP, sgdp, weights, gradients, lr=0.05, nesterov=True, **SGDP_OPTIONS)


def test_the_layer_is_tried_only_where_a_channel_fails() -> None:
    weight, update = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 5.0]])
    channel = torch.tensor([[-4.0, 3.0], [0.0, 1.0]])
    coefficients, invariant = radial_part(weight, channel, update, delta=0.1, epsilon=1e-8)
    assert invariant
    torch.testing.assert_close(coefficients, torch.tensor([[7 / 25], [2.0]]))
    layer = torch.tensor([[3.0, 4.0], [-25.0, 7.0]])  # 25 in one row, -25 in the other
    coefficients, invariant = radial_part(weight, layer, update, delta=0.1, epsilon=1e-8)
    assert invariant
    torch.testing.assert_close(coefficients, torch.full((2, 1), 9 / 26))
    coefficients, invariant = radial_part(weight, weight, update, delta=0.1, epsilon=1e-8)
    assert not invariant
    assert coefficients.abs().max() == 0


@pytest.mark.parametrize(("cosine", "found"), [(0.04, True), (0.06, True), (0.08, False)])
def test_the_threshold_is_delta_over_the_root_of_the_width(cosine: float, found: bool) -> None:
    """0.1 / sqrt(2) = 0.071 for a channel, 0.1 / sqrt(4) = 0.05 for the layer."""
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    gradient = torch.tensor([[cosine, 1.0], [cosine, 1.0]])
    coefficients, invariant = radial_part(weight, gradient, weight.clone(), delta=0.1, epsilon=1e-8)
    assert invariant.item() is found
    torch.testing.assert_close(coefficients, torch.full_like(coefficients, float(found)))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31), rows=st.integers(1, 5), columns=st.integers(2, 6), shrink=st.sampled_from([0.0, 1.0])
)
def test_a_normalised_weight_keeps_its_length(seed: int, rows: int, columns: int, shrink: float) -> None:
    """With a loss that sees directions only, momentum lengthens each row at second order in lr and no faster."""
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(rows, columns, generator=generator) + 0.1)
    goal = torch.randn(rows, columns, generator=generator)
    optimizer = AdamP([weight], lr=1e-3, weight_decay=0.1 * shrink, decay_ratio=0.0)
    for _ in range(10):
        before = weight.detach().norm(dim=1)
        optimizer.zero_grad()
        (nn.functional.normalize(weight, dim=1) * goal).sum().backward()
        optimizer.step()
        moved = weight.detach().norm(dim=1) - before
        assert moved.min() > -1e-6
        assert (moved / before).max() < 4 * columns * (1e-3 / before.min()) ** 2 + 1e-6


def test_sgdp_leaves_the_momentum_whole() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, 0.0]]))
    optimizer = SGDP([weight], lr=0.1, momentum=0.5, nesterov=False, weight_decay=0.0)
    for gradient in ([[0.0, 1.0]], [[0.0, 0.0]]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    assert torch.equal(optimizer.state[weight]["momentum"], torch.tensor([[0.0, 0.5]]))


def test_a_channel_of_zeros_harms_nothing() -> None:
    weight = nn.Parameter(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    weight.grad = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    AdamP([weight], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[-0.1, -0.1], [1.0, -0.1]]))
