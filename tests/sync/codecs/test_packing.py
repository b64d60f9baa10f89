import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.sync.codecs.packing import pack, packed_bytes, unpack


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 32))
def test_what_is_unpacked_was_packed(data: st.DataObject, bits: int) -> None:
    whole = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    payload = pack(torch.tensor(whole, dtype=torch.int64), bits)
    assert payload.dtype == torch.uint8
    assert payload.numel() == packed_bytes(len(whole), bits) == -(-len(whole) * bits // 8)
    found = unpack(payload, bits, len(whole))
    assert found.dtype == (torch.uint8 if bits <= 8 else torch.int64)
    assert found.tolist() == whole


@pytest.mark.parametrize(
    ("bits", "integers", "payload"),
    [
        (1, [1, 0, 0, 0, 0, 0, 1, 1, 1], [0b11001, 0b01000]),
        (2, [1, 2, 3, 0, 2], [0b10_11_01, 0b00_10]),
        (4, [1, 2, 15], [0xF1, 0x02]),
        (8, [7, 255], [7, 255]),
        (3, [1, 6], [0b10_10_01]),
        (9, [256, 3], [0b000010, 0b100001, 0]),
    ],
)
def test_the_layout_stays_as_it_is(bits: int, integers: list[int], payload: list[int]) -> None:
    """Worked out by hand from the description: payloads of two versions must be the same."""
    assert pack(torch.tensor(integers), bits).tolist() == payload


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 17])
def test_an_integer_that_does_not_fit_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"cannot pack 0 to {1 << bits} in {bits} bits"):
        pack(torch.tensor([0, 1 << bits]), bits)
    with pytest.raises(ValueError, match=f"cannot pack -1 to 0 in {bits} bits"):
        pack(torch.tensor([0, -1]), bits)


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_a_width_that_is_none_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"of 1 to 32 bits can be packed, not of {bits}"):
        pack(torch.zeros(1, dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match=f"of 1 to 32 bits can be packed, not of {bits}"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, 1)


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_payload_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"9 integers of 2 bits take 3 bytes, not {size}"):
        unpack(torch.zeros(size, dtype=torch.uint8), 2, 9)


def test_the_input_is_left_alone() -> None:
    integers = torch.tensor([3, 1, 2, 0, 1], dtype=torch.uint8)
    for bits in (2, 8):
        pack(integers, bits).fill_(0)
        assert integers.tolist() == [3, 1, 2, 0, 1]
