"""How the entries of a tensor are cut into groups that share a scale or a codebook."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from shoestring.sync.codecs.payload import entries

Scope = Literal["tensor", "row", "block"]
TILE = 2**17
"""Entries worked on at once, so that what lies between two operations stays in a core's cache."""


@dataclass(frozen=True)
class Groups:
    """The flattened entries in `count` groups of `width`, the last of which may be shorter.

    scope 'tensor' is one group; 'row' one for each index of the first dimension (a tensor of no or one dimension is one
    row); 'block' one for every `block` entries in row-major order, whatever the shape.
    """

    entries: int
    width: int

    @classmethod
    def of(cls, shape: Sequence[int], scope: Scope, block: int) -> "Groups":
        total = entries(shape)
        rows = shape[0] if scope == "row" and len(shape) > 1 else 1
        return cls(total, block if scope == "block" else total // max(rows, 1))

    @property
    def count(self) -> int:
        """How many groups have entries: none of a tensor that has none."""
        return -(-self.entries // self.width) if self.entries else 0

    def parts(self, flat: Tensor) -> list[Tensor]:
        """One value for each entry as matrices, views: the full groups [groups, width], then a shorter last one [1, rest]."""
        border = self._full * self.width
        parts = [flat[:border].view(self._full, self.width)] if self._full else []
        return [*parts, flat[border:].view(1, -1)] if border < self.entries else parts

    def cut(self, each: Tensor) -> list[Tensor]:
        """One value or row of values for each group, those of each of the `parts`."""
        return [piece for piece in (each[: self._full], each[self._full :]) if len(piece)]

    @property
    def _full(self) -> int:
        return self.entries // self.width if self.entries else 0


def tiles(part: Tensor) -> Iterator[tuple[slice, slice]]:
    """The rows and columns of pieces of a matrix of at most TILE entries, which together cover it in row-major order."""
    rows, columns = part.shape
    high = max(1, TILE // columns)
    for top in range(0, rows, high):
        for left in range(0, columns, TILE):
            yield slice(top, top + high), slice(left, left + TILE)
