import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoestring.contract.batch import IGNORED
from shoestring.objective.cross_entropy import Fused, plain

ROUNDING = 3e-6
"""Of float32, relative to the size of the terms that are summed: ten times the largest seen in 20,000 cases."""


def exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[tuple[float, float], list[list[Tensor]]]:
    """The mean loss and its gradients in float64, each with the size of its terms: ((loss, size), (gradients, sizes)).

    A gradient's terms may cancel, and then its rounding is large beside itself, but not beside them.
    """
    rows, matrix = hidden.detach().double().flatten(0, -2), weight.detach().double()
    counts = (targets.flatten() != IGNORED).double()[:, None]
    hot = torch.nn.functional.one_hot(targets.flatten().clamp(min=0), len(matrix)).double()
    logits = rows @ matrix.t()
    shares, number = logits.softmax(-1), max(1.0, counts.sum().item())
    losses = -(logits.log_softmax(-1) * hot).sum(-1, keepdim=True)
    steep, size = (shares - hot) * counts / number, (shares + hot) * counts / number
    size = size * (1 + logits.abs().amax(-1, keepdim=True))  # a share is as exact as its logit
    gradients = [(steep @ matrix).view_as(hidden), steep.t() @ rows]
    sizes = [(size @ matrix.abs()).view_as(hidden), size.t() @ rows.abs()]
    largest = ((1 + rows.abs() @ matrix.abs().t()).amax(-1, keepdim=True) * counts).sum().item() / number
    return ((losses * counts).sum().item() / number, largest), [gradients, sizes]


@example(rows=1, vocabulary=2, block=1, ignored=0, seed=81)  # terms that cancel but for a ten-thousandth
@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 40),
    vocabulary=st.integers(2, 50),
    block=st.integers(1, 50),
    ignored=st.integers(0, 39),
    seed=st.integers(0, 99),
)
def test_fused_has_the_loss_and_gradients_of_plain(
    rows: int, vocabulary: int, block: int, ignored: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, rows, 8, generator=draw, requires_grad=True)
    weight = torch.randn(vocabulary, 8, generator=draw, requires_grad=True)
    targets = torch.randint(vocabulary, (1, rows), generator=draw)
    targets[0, : min(ignored, rows - 1)] = IGNORED
    (loss, scale), (gradients, scales) = exact(hidden, weight, targets)
    for function in (Fused(rows=block), plain):
        found = function(hidden, weight, targets)
        assert abs(found.item() - loss) <= ROUNDING * scale
        for one, wanted, size in zip(torch.autograd.grad(3 * found, (hidden, weight)), gradients, scales, strict=True):
            assert ((one - 3 * wanted).abs() <= 3 * ROUNDING * size).all()


def test_a_frozen_matrix_takes_no_gradient() -> None:
    hidden, weight = torch.randn(3, 8, requires_grad=True), torch.randn(16, 8)
    targets = torch.tensor([1, IGNORED, 3])
    Fused(2)(hidden, weight, targets).backward()
    wanted = torch.autograd.grad(plain(hidden, weight, targets), hidden)[0]
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, wanted)


def test_a_batch_of_ignored_targets_has_no_gradient() -> None:
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    weight = torch.randn(16, 8, requires_grad=True)
    loss = Fused()(hidden, weight, torch.full((1, 4), IGNORED))
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize("rows", [16, 1024])
def test_fused_under_autocast_is_near_float32(rows: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 64, 32, requires_grad=True)
    weight = torch.randn(100, 32, requires_grad=True)
    targets = torch.randint(100, (2, 64))
    exact = plain(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Fused(rows)(hidden, weight, targets)
    found.backward()
    assert abs(found.item() - exact.item()) < 0.02 * exact.item()
    (gradient,) = torch.autograd.grad(exact, weight)
    assert weight.grad is not None
    assert (weight.grad - gradient).norm() < 0.02 * gradient.norm()
