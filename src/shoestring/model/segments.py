"""Segments of a text: where tokens stand in them, and what a layer keeps from one to the next."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from shoestring.contract.cache import Pass
from shoestring.errors import UsageError
from shoestring.model.cache import ContiguousLayer
from shoestring.model.recurrent_cache import require_order


class SegmentState:
    """The state of one layer: the memory [B, M, width] that its segment reads, and keys and values of the segment so far."""

    rewindable = False

    def __init__(self, memory: Tensor, segment: ContiguousLayer) -> None:
        self.memory, self.segment = memory, segment
        self.coming: Pass | None = None

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes + self.segment.nbytes

    def begin(self, coming: Any) -> None:
        require_order(coming)
        self.coming = coming

    def take(self, rows: Tensor) -> Self:
        return type(self)(self.memory[rows], self.segment.take(rows))

    def crop(self, lengths: Sequence[int]) -> None:
        raise UsageError("a memory of segments cannot forget single tokens: restore a snapshot")

    def snapshot(self) -> Any:
        return self.memory.clone(), self.segment.keys.clone(), self.segment.values.clone()

    def restore(self, snapshot: Any) -> None:
        memory, keys, values = snapshot
        self.memory, self.segment = memory.clone(), ContiguousLayer(keys.clone(), values.clone())


class SegmentPiece(NamedTuple):
    """A part of a pass. segments: whole ones, or 0 for a part of one. first, tokens: of the pass. place: in the segment."""

    segments: int
    first: int
    tokens: int
    place: int


class Positions(NamedTuple):
    """Rotary tables of tokens, [B, T, 1, D] each."""

    cos: Tensor
    sin: Tensor

    def of(self, first: int, last: int) -> "Positions":
        """Of some of the tokens."""
        return Positions(self.cos[:, first:last], self.sin[:, first:last])

    def around(self, before: int, after: int) -> "Positions":
        """With the first token's for memory that is read before it, and the last one's for memory that is written after it."""
        return Positions(
            *(torch.cat((t[:, :1].expand(-1, before, -1, -1), t, t[:, -1:].expand(-1, after, -1, -1)), 1) for t in self)
        )
