import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.contract.batch import IGNORED
from shoestring.objective.cross_entropy import Fused, plain


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
    expected = plain(hidden, weight, targets)
    expected_gradients = torch.autograd.grad(3 * expected, (hidden, weight))
    found = Fused(rows=block)(hidden, weight, targets)
    gradients = torch.autograd.grad(3 * found, (hidden, weight))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


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
