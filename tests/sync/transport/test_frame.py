"""Frames: what is sealed comes out again, and nothing else does."""

import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoestring.sync.transport.frame import HEADER_BYTES, CorruptFrame, derive_key, new_token, open_frame, seal

KEY = derive_key("a token")
NUMBERS = st.integers(0, 2**64 - 1)


def _tensor(content: bytes) -> Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


@given(st.binary(max_size=300), NUMBERS, NUMBERS, st.sampled_from([KEY, b""]))
def test_what_is_sealed_comes_out_again(content: bytes, tag: int, sender: int, key: bytes) -> None:
    frame = seal(_tensor(content), key=key, tag=tag, sender=sender)
    assert frame.dtype == torch.uint8
    assert frame.numel() == HEADER_BYTES + len(content) == 48 + len(content)
    payload = open_frame(frame, key=key, tag=tag, sender=sender)
    assert bytes(payload.tolist()) == content


def test_the_layout_is_the_one_described() -> None:
    content = b"payload"
    fields = b"SHST" + struct.pack("<IQQQ", 1, 2**40 + 3, 5, len(content))
    code = hashlib.blake2b(fields + content, digest_size=16, key=KEY).digest()
    assert bytes(seal(_tensor(content), key=KEY, tag=2**40 + 3, sender=5).tolist()) == fields + code + content


@given(st.binary(min_size=0, max_size=60), st.data())
def test_any_flipped_bit_is_found(content: bytes, data: st.DataObject) -> None:
    frame = seal(_tensor(content), key=KEY, tag=7, sender=1)
    place = data.draw(st.integers(0, frame.numel() - 1))
    frame[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptFrame):
        open_frame(frame, key=KEY, tag=7, sender=1)


@given(st.binary(max_size=60), st.data())
def test_a_frame_cut_short_or_drawn_out_is_found(content: bytes, data: st.DataObject) -> None:
    frame = seal(_tensor(content), key=KEY, tag=7, sender=1)
    with pytest.raises(CorruptFrame):
        open_frame(frame[: data.draw(st.integers(0, frame.numel() - 1))], key=KEY, tag=7, sender=1)
    with pytest.raises(CorruptFrame):
        open_frame(torch.cat([frame, torch.zeros(1, dtype=torch.uint8)]), key=KEY, tag=7, sender=1)


@pytest.mark.parametrize(
    ("key", "tag", "sender", "reason"),
    [
        (derive_key("another token"), 7, 1, "another token"),
        (b"", 7, 1, "another token"),
        (KEY, 8, 1, "of worker 1 tagged 7, due is one of worker 1 tagged 8"),
        (KEY, 7, 2, "of worker 1 tagged 7, due is one of worker 2 tagged 7"),
    ],
)
def test_a_whole_frame_of_something_else_is_refused(key: bytes, tag: int, sender: int, reason: str) -> None:
    frame = seal(_tensor(b"payload"), key=KEY, tag=7, sender=1)
    with pytest.raises(CorruptFrame, match=reason):
        open_frame(frame, key=key, tag=tag, sender=sender)


def test_the_payload_is_a_view_that_other_dtypes_can_read() -> None:
    values = torch.randn(1000, dtype=torch.float64)
    frame = seal(values.view(torch.uint8), key=KEY, tag=0, sender=0)
    payload = open_frame(frame, key=KEY, tag=0, sender=0)
    assert payload.data_ptr() == frame.data_ptr() + HEADER_BYTES
    assert torch.equal(payload.view(torch.float64), values)


def test_a_payload_need_not_be_contiguous_but_must_be_bytes() -> None:
    spread = torch.arange(20, dtype=torch.uint8)[::2]
    assert torch.equal(open_frame(seal(spread, key=KEY, tag=0, sender=0), key=KEY, tag=0, sender=0), spread)
    for wrong in (torch.zeros(4), torch.zeros(2, 2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            seal(wrong, key=KEY, tag=0, sender=0)


def test_tokens_are_secret_and_keys_follow_from_them() -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert len(new_token()) >= 43
    assert derive_key("a token") == KEY != derive_key("a tokem")
    assert derive_key("") == b""
