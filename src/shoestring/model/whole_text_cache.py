"""The keys and values of a text that a model sees both ways: all of it at once, of which some places are computed again."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.errors import UsageError
from shoestring.model.cache import KeyValueShape


class TextPlaces:
    """A pass over some places of a text that is held.

    positions: [B, n] int64. end: tokens of the text. longest: those of them that the pass does not compute.
    """

    uniform = False

    def __init__(self, positions: Tensor, room: int) -> None:
        self.positions, self.end, self.longest = positions, room, room - positions.shape[1]


class WholeTextLayer:
    """The keys and values of one layer, [B, heads, room, head_width] each: every token sees all of them."""

    rewindable = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self._index: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def begin(self, coming: TextPlaces) -> None:
        self._index = coming.positions[:, None, :, None].expand(-1, self.keys.shape[1], -1, self.keys.shape[3])

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `KeyValues.append`: what was held of these places is replaced."""
        assert self._index is not None
        self.keys.scatter_(2, self._index, keys.to(self.keys.dtype))
        self.values.scatter_(2, self._index, values.to(self.values.dtype))
        return self.keys, self.values, None

    def take(self, rows: Tensor) -> Self:
        return type(self)(self.keys[rows], self.values[rows])

    def crop(self, lengths: Sequence[int]) -> None:
        raise UsageError("a text that is seen both ways is held whole: compute places of it again instead")

    def snapshot(self) -> Any:
        return self.keys.clone(), self.values.clone()

    def restore(self, snapshot: Any) -> None:
        self.keys, self.values = snapshot[0].clone(), snapshot[1].clone()


class WholeTextCache(Cache):
    """Of texts of exactly `room` tokens. The first pass reads all of them. Each later one reads the tokens at its `positions`, of
    which all rows have as many: their keys and values replace those that were held, and the others stay as they were.

    So it is exact only while the text stays the same: which places are computed again is for the caller to say.
    """

    def __init__(
        self, shapes: Sequence[KeyValueShape], rows: int, room: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        sizes = [(2, rows, shape.heads, room, shape.head_width) for shape in shapes]
        super().__init__([WholeTextLayer(*torch.zeros(size, dtype=dtype, device=device)) for size in sizes], rows, room)

    def begin(self, inputs: Inputs) -> Any:
        """As `Cache.begin`. Raises: UsageError where a first pass does not read the whole text, and for masks and padding."""
        if inputs.rows != self.rows:
            raise UsageError(f"a cache of {self.rows} rows cannot take a pass of {inputs.rows}")
        if inputs.documents is not None or inputs.lengths is not None or inputs.mask is not None:
            raise UsageError("a text that is seen both ways and held takes no mask, no padding and no documents")
        positions = inputs.positions
        if positions is None:
            positions = torch.arange(inputs.length, device=inputs.values.device).expand(inputs.rows, -1)
        if (not self.lengths[0] or inputs.positions is None) and inputs.length != self.room:
            raise UsageError(
                f"{inputs.length} tokens were given of a text of {self.room}: read all of it first, then places of it"
            )
        coming = TextPlaces(positions, self.room)
        for layer in self.layers:
            layer.begin(coming)
        return coming

    def advance(self) -> None:
        """The text is held."""
        self.lengths = [self.room] * self.rows

    def take(self, rows: Tensor) -> "Cache":
        raise UsageError("rows of a text that is held whole are not taken apart: read each by itself")
