"""Attention of grouped heads: one token in 16 bits takes a way of its own, and finds the same."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.grouped_attention import grouped_attention

ROWS, HEADS, SHARED, KEYS, WIDTH = 2, 6, 2, 9, 16


def masks(new: int) -> dict[str, Tensor | None]:
    seen = torch.rand(ROWS, HEADS, new, KEYS, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[..., 0] = True
    return {"none": None, "of all": seen[0, 0], "of rows": seen[:, :1], "of heads": seen}


@pytest.mark.parametrize("name", masks(1))
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("shared", [SHARED, HEADS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_attention_with_keys_repeated(dtype: torch.dtype, shared: int, new: int, name: str) -> None:
    torch.manual_seed(0)
    queries = torch.randn(ROWS, HEADS, new, WIDTH, dtype=dtype)
    keys, values = (torch.randn(ROWS, shared, KEYS, WIDTH + more, dtype=dtype) for more in (0, 4))
    mask, scale = masks(new)[name], 0.3
    found = grouped_attention(queries, keys, values, mask=mask, scale=scale)
    wide_keys, wide_values = (one.double().repeat_interleave(HEADS // shared, 1) for one in (keys, values))
    expected = F.scaled_dot_product_attention(queries.double(), wide_keys, wide_values, attn_mask=mask, scale=scale)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_a_causal_pass_is_causal() -> None:
    queries, keys = torch.randn(1, 4, 5, 8).bfloat16(), torch.randn(1, 2, 5, 8).bfloat16()
    found = grouped_attention(queries, keys, keys, is_causal=True)
    torch.testing.assert_close(
        found, F.scaled_dot_product_attention(queries, keys, keys, is_causal=True, enable_gqa=True)
    )
