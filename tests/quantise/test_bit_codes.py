"""Codes as bytes: what is packed comes back, and bytes that cannot be are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.errors import ShoestringError
from shoestring.quantise.bit_codes import pack, packed_bytes, unpack


@settings(max_examples=30)
@given(st.sampled_from([2, 3, 4, 8, 16, 32, 64, 256]), st.integers(0, 41), st.randoms(use_true_random=False))
def test_codes_come_back(levels: int, count: int, draw: object) -> None:
    codes = torch.tensor([draw.randrange(levels) for _ in range(count)], dtype=torch.uint8)  # type: ignore[attr-defined]
    packed = pack(codes, levels)
    assert len(packed) == packed_bytes(count, levels)
    assert torch.equal(unpack(packed, count, levels), codes)


def test_the_bits_lie_where_the_docstring_says() -> None:
    assert pack(torch.tensor([1, 2, 7, 4], dtype=torch.uint8), 8).tolist() == [
        1 | 2 << 3 | (7 << 6 & 255),
        7 >> 2 | 4 << 1,
    ]
    assert pack(torch.tensor([2, 1, 0, 2, 1, 2], dtype=torch.uint8), 3).tolist() == [2 + 3 + 2 * 27 + 81, 2]


@pytest.mark.parametrize(
    ("packed", "count", "levels", "said"),
    [
        ([0], 9, 2, "are uint8"),
        ([243], 5, 3, "at most 242"),
        ([3], 1, 3, "is not zero"),
        ([128], 2, 8, "is not zero"),
        ([255], 1, 5, "is not zero"),
    ],
)
def test_other_bytes_are_refused(packed: list[int], count: int, levels: int, said: str) -> None:
    with pytest.raises(ShoestringError, match=said):
        unpack(torch.tensor(packed, dtype=torch.uint8), count, levels)


def test_a_code_beyond_the_levels_is_refused() -> None:
    with pytest.raises(ShoestringError, match="below 4"):
        pack(torch.tensor([4], dtype=torch.uint8), 4)
