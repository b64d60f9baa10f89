"""Packed matrices: exact round trips of any shape, sizes as stated, bytes as documented, damage refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.packing import LAYOUTS, check_packed, layout_named, pack, packed_bytes, unpack

SIDES = st.integers(0, 70)
SEEDS = st.integers(0, 2**31)


def trits(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(layout=st.sampled_from(LAYOUTS), rows=SIDES, columns=SIDES, seed=SEEDS)
def test_a_round_trip_is_exact(layout: str, rows: int, columns: int, seed: int) -> None:
    codes = trits(rows, columns, seed)
    packed = pack(codes, layout)
    assert packed.shape == (packed_bytes(rows, columns, layout),)
    check_packed(packed, rows, columns, layout)
    assert torch.equal(unpack(packed, rows, columns, layout), codes)


@pytest.mark.parametrize(("layout", "share"), [("ternary2", 0.25), ("ternary1.6", 0.2)])
def test_bytes_a_weight(layout: str, share: float) -> None:
    assert packed_bytes(4096, 14400, layout) == 4096 * 14400 * share
    assert packed_bytes(4096, 4096, layout) / 4096**2 == pytest.approx(share, rel=1.1e-3)
    assert packed_bytes(1, 1, layout) == 64


def byte_by_byte(codes: Tensor, layout: str) -> list[int]:
    """The layout as docs/packing.md puts it, one trit at a time."""
    rows, columns = codes.shape
    places, base = (4, 4) if layout == "ternary2" else (5, 3)
    found = []
    for first_row in range(0, rows, 16):
        for first_column in range(0, columns, 4 * places):
            for row in range(first_row, first_row + 16):
                for quad in range(4):
                    byte = 0
                    for place in range(places):
                        column = first_column + 4 * place + quad
                        trit = int(codes[row, column]) if row < rows and column < columns else 0
                        byte += (trit + 1) * base**place
                    found.append(byte)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bytes_are_where_the_documentation_says(layout: str) -> None:
    codes = trits(19, 47, seed=3)
    assert pack(codes, layout).tolist() == byte_by_byte(codes, layout)


@pytest.mark.parametrize(("layout", "first"), [("ternary2", 3), ("ternary1.6", 243)])
def test_a_byte_that_cannot_occur_is_refused(layout: str, first: int) -> None:
    whole = {
        byte for byte in range(256) if not bool(layout_named(layout).invalid(torch.tensor([byte], dtype=torch.uint8)))
    }
    assert len(whole) == (81 * 3 if layout == "ternary1.6" else 3**4)
    assert first not in whole
    packed = pack(trits(16, 80), layout)
    packed[37] = first
    for read in (check_packed, unpack):
        with pytest.raises(ShoestringError, match=f"byte 37 is {first}"):
            read(packed, 16, 80, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_byte_that_can_occur_is_read_back(layout: str) -> None:
    good = [b for b in range(256) if not bool(layout_named(layout).invalid(torch.tensor([b], dtype=torch.uint8)))]
    packed = torch.tensor(good + good[:1] * (-len(good) % 64), dtype=torch.uint8)
    columns = len(packed) // 64 * layout_named(layout).columns
    assert torch.equal(pack(unpack(packed, 16, columns, layout), layout), packed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_length_is_refused(layout: str) -> None:
    packed = pack(trits(16, 80), layout)
    for wrong in (packed[:-1], torch.cat([packed, packed[:1]]), packed.view(64, -1), packed.to(torch.int8), packed[:0]):
        with pytest.raises(ShoestringError, match=f"not a {layout} matrix of 16 x 80"):
            unpack(wrong, 16, 80, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(15, 80), (16, 79)])
def test_what_fills_up_must_be_zero(layout: str, shape: tuple[int, int]) -> None:
    packed = pack(torch.ones(16, 80, dtype=torch.int8), layout)
    with pytest.raises(ShoestringError, match="fills its last blocks up is not zero"):
        unpack(packed, *shape, layout)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'ternary2'"):
        pack(trits(1, 1), "ternary3")
    with pytest.raises(ShoestringError, match="not -1 to 2"):
        pack(torch.tensor([[-1, 2]], dtype=torch.int8), "ternary2")
    with pytest.raises(ShoestringError, match="not -128 to 0"):
        pack(torch.tensor([[-128, 0]], dtype=torch.int8), "ternary2")
    with pytest.raises(ShoestringError, match="not float32"):
        pack(torch.zeros(1, 1), "ternary2")
    with pytest.raises(ShoestringError, match="at most 131072 columns"):
        packed_bytes(1, 131073, "ternary2")
    with pytest.raises(ShoestringError, match="-1 rows"):
        packed_bytes(-1, 1, "ternary2")
