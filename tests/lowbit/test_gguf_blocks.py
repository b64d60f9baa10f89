"""The blocks of GGUF: byte for byte those of the `gguf` package's own quantiser, and back to the same numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.errors import ShoestringError
from shoestring.lowbit.gguf import BLOCK, BLOCK_BYTES, blocks, is_ternary, rounding

gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(BLOCK_BYTES)),
    rows=st.integers(0, 5),
    across=st.integers(1, 3),
    seed=st.integers(0, 1 << 30),
    size=st.floats(-4, 4),
)
def test_they_are_those_of_the_oracle(kind: str, rows: int, across: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, 2, (rows, across * BLOCK), generator=generator).float()
    scales = torch.rand(rows, across, generator=generator) * 10**size + 1e-4
    matrix = codes * scales.repeat_interleave(BLOCK, 1)
    matrix[:, :BLOCK] *= (torch.arange(rows) % 2)[:, None]  # a block of zeros has the scale 0
    found = blocks(matrix, kind).numpy()
    assert found.shape == (rows, across * BLOCK_BYTES[kind])
    of = gguf.GGMLQuantizationType[kind]
    if rows:  # it takes no matrix without rows
        assert np.array_equal(found, gguf.quants.quantize(matrix.numpy(), of))
        narrow = codes * scales.half().float().repeat_interleave(BLOCK, 1)
        narrow[:, :BLOCK] *= (torch.arange(rows) % 2)[:, None]
        assert np.array_equal(gguf.quants.dequantize(found, of), narrow.numpy())
    assert rounding(matrix) <= 2**-11


def test_what_they_cannot_hold_is_refused() -> None:
    one = torch.ones(2, BLOCK)
    assert is_ternary(one)
    for wrong in (one[:, :100], one * torch.linspace(1, 2, BLOCK), one * torch.nan):
        assert not is_ternary(wrong)
    with pytest.raises(ShoestringError, match="no multiple"):
        blocks(one[:, :100], "TQ2_0")
    with pytest.raises(ShoestringError, match="one number and its negative"):
        blocks(one * torch.linspace(1, 2, BLOCK), "TQ2_0")
    with pytest.raises(ShoestringError, match="one number and its negative"):
        blocks(one * torch.nan, "TQ1_0")
    for size in (1e5, 1e-9):
        with pytest.raises(ShoestringError, match="float16 scale"):
            blocks(one * size, "TQ1_0")
