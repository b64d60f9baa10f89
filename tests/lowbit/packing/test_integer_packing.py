"""Matrices of four bits: exact round trips, rows that can be looked up, damage refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.errors import ShoestringError
from shoestring.lowbit.packing import integer


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 9), columns=st.integers(0, 150), seed=st.integers(0, 2**31))
def test_a_round_trip_is_exact(rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    packed = integer.pack(codes)
    assert packed.shape == (rows, integer.row_bytes(columns))
    assert torch.equal(integer.unpack(packed, columns), codes)
    chosen = torch.arange(rows)[::2]
    assert torch.equal(integer.unpack(packed[chosen], columns), codes[chosen])


def test_the_bytes_are_where_the_documentation_says() -> None:
    codes = (torch.arange(130) % 16 - 8).to(torch.int8)[None]
    packed = integer.pack(codes)[0].tolist()
    assert len(packed) == 96
    for column, code in enumerate(codes[0].tolist()):
        byte = packed[column // 64 * 32 + column % 32]
        assert (byte & 15 if column % 64 < 32 else byte >> 4) - 8 == code


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShoestringError, match="not -8 to 8"):
        integer.pack(torch.tensor([[-8, 8]], dtype=torch.int8))
    with pytest.raises(ShoestringError, match="int8"):
        integer.pack(torch.zeros(2, 2))
    packed = integer.pack(torch.ones(2, 64, dtype=torch.int8))
    with pytest.raises(ShoestringError, match="not a 4-bit matrix of 65 columns"):
        integer.unpack(packed, 65)
    with pytest.raises(ShoestringError, match="fills its last block up is not zero"):
        integer.unpack(packed, 63)
