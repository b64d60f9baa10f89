"""Frames: a message with a header that says what it is, and a code that shows its receiver that it is whole.

    offset  bytes  field
    0       4      magic, b'SHST'
    4       4      version of this layout
    8       8      tag: of the round and the stage in it
    16      8      sender: its rank
    24      8      length of the payload, bytes
    32      16     BLAKE2b of bytes 0 to 31 and of the payload, keyed with the run's token
    48             payload

All numbers are unsigned and little-endian. BLAKE2b: Saarinen and Aumasson, 'The BLAKE2 Cryptographic Hash and Message
Authentication Code', RFC 7693. It takes a key as in section 2.5 there, so it needs no HMAC around it.
"""

import hashlib
import hmac
import secrets
import struct

import torch
from torch import Tensor

from shoestring.errors import ShoestringError

TOKEN = "SHOESTRING_TOKEN"
"""The environment variable that holds the run's token."""

MAGIC, VERSION = b"SHST", 1
_FIELDS = struct.Struct("<4sIQQQ")
_CODE_BYTES = 16
HEADER_BYTES = _FIELDS.size + _CODE_BYTES
"""Bytes that a frame adds to its payload."""


class CorruptFrame(ShoestringError):
    """What came is not the expected frame: it is incomplete, altered, sealed with another token, or of another round or sender."""


def new_token() -> str:
    """A secret for one run, 256 random bits as text: its workers recognise each other by it.

    It belongs in the environment, never on a command line, which every user of a machine can read.
    """
    return secrets.token_urlsafe(32)


def derive_key(token: str) -> bytes:
    """The 32 bytes that frames are keyed with.

    b'' for the token '': a frame's code then only finds damage, as anybody can make one.
    """
    return hashlib.blake2b(token.encode(), digest_size=32, person=b"shoestring-frame").digest() if token else b""


def code(key: bytes, *parts: bytes | memoryview) -> bytes:
    """The keyed 16-byte BLAKE2b of the parts, one after another."""
    hashed = hashlib.blake2b(digest_size=_CODE_BYTES, key=key)
    for part in parts:
        hashed.update(part)
    return hashed.digest()


def _bytes_of(values: Tensor) -> memoryview:
    return values.numpy().data


def seal(payload: Tensor, *, key: bytes, tag: int, sender: int) -> Tensor:
    """The frame of a payload, uint8 [48 + bytes] on the CPU.

    payload: uint8 [bytes] on any device; it is copied once.
    key: `derive_key` of the run's token.
    tag: of the round and the stage in it, 0 to 2^64 - 1.
    sender: its rank, 0 to 2^64 - 1.

    Raises: ValueError where the payload is not of bytes.
    """
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        raise ValueError(f"a payload is uint8 [bytes], not {payload.dtype} {list(payload.shape)}")
    frame = torch.empty(HEADER_BYTES + payload.numel(), dtype=torch.uint8)
    frame[HEADER_BYTES:].copy_(payload)
    whole = _bytes_of(frame)
    whole[: _FIELDS.size] = _FIELDS.pack(MAGIC, VERSION, tag, sender, payload.numel())
    whole[_FIELDS.size : HEADER_BYTES] = code(key, whole[: _FIELDS.size], whole[HEADER_BYTES:])
    return frame


def announced_length(message: Tensor) -> int:
    """The bytes of payload by a frame's header, not checked: they say how much of a larger buffer was filled."""
    length: int = _FIELDS.unpack(_bytes_of(message)[: _FIELDS.size])[4]
    return length


def open_frame(message: Tensor, *, key: bytes, tag: int, sender: int) -> Tensor:
    """The payload of a frame, uint8 [bytes]: a view of the message.

    message: uint8 [48 + bytes] on the CPU, contiguous.
    key, tag, sender: as they must be.

    Raises: CorruptFrame where the message is not the whole frame with this tag and sender.
    """
    if message.numel() < HEADER_BYTES:
        raise CorruptFrame(f"a frame of {message.numel()} bytes: the header alone has {HEADER_BYTES}")
    whole = _bytes_of(message)
    magic, version, its_tag, its_sender, length = _FIELDS.unpack(whole[: _FIELDS.size])
    if magic != MAGIC:
        raise CorruptFrame("not a frame: it begins with other bytes")
    if version != VERSION:
        raise CorruptFrame(f"a frame of layout {version}, not {VERSION}")
    if length != message.numel() - HEADER_BYTES:
        raise CorruptFrame(f"a torn frame: {length} bytes announced, {message.numel() - HEADER_BYTES} there")
    if not hmac.compare_digest(
        whole[_FIELDS.size : HEADER_BYTES], code(key, whole[: _FIELDS.size], whole[HEADER_BYTES:])
    ):
        raise CorruptFrame("a frame that was altered on the way, or sealed with another token")
    if (its_tag, its_sender) != (tag, sender):
        raise CorruptFrame(
            f"a frame of worker {its_sender} tagged {its_tag}, due is one of worker {sender} tagged {tag}"
        )
    return message[HEADER_BYTES:]
