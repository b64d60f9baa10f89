import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoestring.lowbit.activations import fake_tokens, quantise_tokens

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@given(st.lists(st.lists(NUMBERS, min_size=5, max_size=5), min_size=1, max_size=4))
def test_codes_are_the_nearest_and_fake_is_what_they_stand_for(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float32)
    codes, scales = quantise_tokens(x)
    assert codes.dtype == torch.int8
    assert scales.shape == (len(rows), 1)
    assert int(codes.abs().max()) <= 127
    for row, code, scale in zip(x, codes.tolist(), scales[:, 0], strict=True):
        divisor = scale if scale > 0 else torch.tensor(1.0)
        assert code == [max(-127, min(127, round(float(number / divisor)))) for number in row]
    assert torch.equal(fake_tokens(x), codes * scales)


def test_a_token_of_zeros_has_no_scale_and_the_largest_becomes_127() -> None:
    codes, scales = quantise_tokens(torch.tensor([[[0.0, -0.0], [1.0, -2.0]]]))
    assert codes.tolist() == [[[0, 0], [64, -127]]]
    assert scales.flatten().tolist() == pytest.approx([0.0, 2.0 / 127])


def test_a_token_that_is_not_finite_stays_so() -> None:
    for bad in (math.nan, math.inf):
        codes, scales = quantise_tokens(torch.tensor([[1.0, bad], [1.0, 1.0]]))
        assert not torch.isfinite(codes * scales)[0].all()
        assert codes[1].tolist() == [127, 127]


def test_the_gradient_passes_straight_through_in_any_type() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x: Tensor = torch.randn(3, 4).to(dtype).requires_grad_()
        out = fake_tokens(x)
        assert out.dtype == dtype
        out.backward(torch.full_like(out, 2.0))
        assert x.grad is not None
        assert torch.equal(x.grad, torch.full_like(x, 2.0))
