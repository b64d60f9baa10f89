"""Which tensors of a message a codec encodes together: matrices below each other, vectors after each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from shoestring.sync.codec import Codec

TOGETHER = 1 << 22
"""The most entries that are put together: it bounds the memory that this takes, and larger pieces gain nothing."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CodecPiece:
    """Tensors that a codec encodes as one.

    codec: which one.
    members: their places among all tensors of the message.
    shapes: of each.
    width: entries of a row; 0 where they are vectors, None for one tensor in its own shape.
    """

    codec: Codec
    members: list[int]
    shapes: list[Shape]
    width: int | None

    @property
    def entries(self) -> int:
        return sum(map(math.prod, self.shapes))

    def shape(self, count: int) -> Shape:
        """The shape of the first `count` tensors together."""
        if self.width is None:
            return self.shapes[0]
        entries = sum(map(math.prod, self.shapes[:count]))
        return (entries // self.width, self.width) if self.width else (entries,)

    def nbytes(self, count: int) -> int:
        """Bytes of the payload of the first `count` tensors; where the codec's sizes vary, the most there can be."""
        return self.codec.payload_bytes(self.shape(count)) if count else 0

    def shares(self, size: int) -> list[int]:
        """How the `size` bytes of a payload fall to its tensors: each has what it adds to those before it."""
        if len(self.members) == 1:
            return [size]
        ends = [self.nbytes(count) for count in range(len(self.members) + 1)]
        return [end - start for start, end in pairwise(ends)]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Its members, of all `tensors`, as one tensor."""
        own = [tensors[member] for member in self.members]
        if self.width is None:
            return own[0]
        return torch.cat([each.reshape(-1, self.width) if self.width else each.reshape(-1) for each in own])

    def part(self, whole: Tensor) -> list[Tensor]:
        """The members of what `join` made: views."""
        if self.width is None:
            return [whole]
        sizes = [math.prod(shape) // (self.width or 1) for shape in self.shapes]
        return [each.reshape(shape) for each, shape in zip(whole.split(sizes), self.shapes, strict=True)]


def compressed(shape: Sequence[int]) -> bool:
    """Whether the codec encodes a tensor of this shape: it has two dimensions or more, and entries."""
    return len(shape) >= 2 and math.prod(shape) > 0


def pieces(codec: Codec, vectors: Codec, shapes: Sequence[Shape]) -> list[CodecPiece]:
    """The pieces that tensors of these shapes make, in the order of their first members.

    codec: of those that are `compressed`. Where it is `rowwise`, those whose rows are of one length are put together.
    vectors: the codec of all others.
    shapes: of the tensors.
    """
    made: list[CodecPiece] = []
    latest: dict[int, CodecPiece] = {}
    for place, shape in enumerate(shapes):
        entries, matrix = math.prod(shape), compressed(shape)
        width = 0 if not matrix else entries // shape[0] if codec.rowwise else None
        piece = None if width is None else latest.get(width)
        if piece is None or piece.entries + entries > TOGETHER:
            piece = CodecPiece(codec if matrix else vectors, [], [], width)
            made.append(piece)
            if width is not None:
                latest[width] = piece
        piece.members.append(place)
        piece.shapes.append(shape)
    return made
