"""What lies in one message of an exchange: a header, a note, and the payloads of several tensors."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from shoestring.sync.codec import Codec
from shoestring.sync.codecs.floats import Float32
from shoestring.sync.codecs.pieces import pieces

NOTE_BYTES = 128
HEADER = struct.Struct("<BxxxI")
VECTORS = Float32()


class Holds(IntEnum):
    """What a message says of its payloads."""

    TENSORS = 1
    NOTHING = 2
    """A value of this worker was not finite; or, of an average, nobody had tensors."""
    ABSENT = 3
    """This worker has no tensors of its own: it has just taken over the state of another."""
    BROKEN = 4
    """This worker could not do its part, as a message that it got was not whole."""


def write_note(note: Mapping[str, Any]) -> bytes:
    """The note as JSON, padded with spaces to NOTE_BYTES. Raises: ValueError where it is longer."""
    text = json.dumps(dict(note), separators=(",", ":")).encode()
    if len(text) > NOTE_BYTES:
        raise ValueError(f"the note takes {len(text)} bytes, and {NOTE_BYTES} are the most: {text[:40].decode()} ...")
    return text.ljust(NOTE_BYTES)


def read_note(text: bytes) -> dict[str, Any]:
    """Raises: ValueError where it is no note."""
    note = json.loads(text)
    if not isinstance(note, dict):
        raise ValueError("the note of a message is no table")
    return note


@dataclass(frozen=True)
class OpenedMessage:
    """A message taken apart. generation: how many rounds its sender had applied. body: the payloads, uint8 [bytes]."""

    holds: Holds
    generation: int
    note: dict[str, Any]
    body: Tensor


def header_bytes(noted: bool) -> int:
    """What a message takes besides its body; noted: whether it carries a note."""
    return HEADER.size + (NOTE_BYTES if noted else 0)


def seal(holds: Holds, generation: int, note: bytes, body: Tensor | None, nbytes: int) -> Tensor:
    """A message, uint8 [bytes] on the CPU. Without a body it is padded with `nbytes` zeros. note: from
    `write_note`, or b"" for none."""
    head = torch.frombuffer(bytearray(HEADER.pack(holds, generation % 2**32) + note), dtype=torch.uint8)
    return torch.cat([head, torch.zeros(nbytes, dtype=torch.uint8) if body is None else body.cpu()])


def open_message(message: Tensor, noted: bool) -> OpenedMessage:
    """The parts of a message. Raises: ValueError where it cannot be one."""
    length = header_bytes(noted)
    if message.numel() < length:
        raise ValueError(f"a message of {message.numel()} bytes is too short to have a header")
    head = bytes(message[:length].tolist())
    flag, generation = HEADER.unpack_from(head)
    return OpenedMessage(Holds(flag), generation, read_note(head[HEADER.size :]) if noted else {}, message[length:])


class BodyLayout:
    """How tensors of given shapes lie in a body: matrices (two dimensions or more) as the codec encodes them, vectors as
    float32, since they are few and each entry acts on a whole channel.

    Where the codec is `rowwise`, matrices whose rows are of one length are encoded as one, and so are vectors: a model has
    many tensors of few widths, and a small one takes a codec as long as a large one.

    fixed: whether a body always has `nbytes` bytes. Otherwise it begins with the size of each payload (int32), as a
    codec whose output varies needs.
    """

    def __init__(self, codec: Codec, shapes: Sequence[Sequence[int]]) -> None:
        self.shapes = [tuple(shape) for shape in shapes]
        self.pieces = pieces(codec, VECTORS, self.shapes)
        self.fixed = all(piece.codec.fixed_size for piece in self.pieces)
        self.most = [piece.nbytes(len(piece.members)) for piece in self.pieces]
        self.nbytes = sum(self.most)

    def pack(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """(body, the bytes that each tensor takes in it). Raises: ValueError for a codec that does not keep its word on
        sizes."""
        payloads = [piece.codec.encode(piece.join(tensors)) for piece in self.pieces]
        shares = [0] * len(self.shapes)
        for piece, payload, most in zip(self.pieces, payloads, self.most, strict=True):
            size = payload.numel()
            if size > most or (piece.codec.fixed_size and size != most):
                name = type(piece.codec).__name__
                raise ValueError(f"{name} made {size} bytes of {piece.shape(len(piece.members))}, and had said {most}")
            for member, share in zip(piece.members, piece.shares(size), strict=True):
                shares[member] = share
        if not self.fixed:
            sizes = torch.tensor([payload.numel() for payload in payloads], dtype=torch.int32)
            payloads.insert(0, sizes.view(torch.uint8).to(payloads[0].device))
        return torch.cat(payloads), shares

    def unpack(self, body: Tensor, device: torch.device) -> list[Tensor]:
        """The float32 tensors, on `device`. Raises: ValueError where the body cannot be of these shapes."""
        found: dict[int, Tensor] = {}
        for piece, payload in zip(self.pieces, self._split(body.to(device)), strict=True):
            whole = piece.codec.decode(payload, piece.shape(len(piece.members)))
            found |= zip(piece.members, piece.part(whole), strict=True)
        return [found[place] for place in range(len(self.shapes))]

    def _split(self, body: Tensor) -> list[Tensor]:
        sizes, start = self.most, 0
        if not self.fixed:
            start = min(4 * len(self.pieces), body.numel())
            sizes = body[: start - start % 4].cpu().clone().view(torch.int32).tolist()
        whole = len(sizes) == len(self.pieces) and min(sizes) >= 0 and start + sum(sizes) == body.numel()
        if not whole:
            raise ValueError(f"a body of {body.numel()} bytes is not of the tensors expected")
        return list(body[start:].split(sizes))
