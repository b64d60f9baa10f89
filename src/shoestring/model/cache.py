"""Keys and values in one piece: room for every token of a row, allocated once."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from shoestring.contract.cache import Cache, KeptShape, Pass
from shoestring.errors import ShoestringError
from shoestring.kernels.attention import BlockRows, BlockSpan, Layers
from shoestring.kernels.decoder import CachePlaces
from shoestring.model.recurrent_cache import RecurrentState


class KeyValueShape(NamedTuple):
    """What one attention layer keeps of a token: a key and a value of each head."""

    heads: int
    head_width: int


class ContiguousLayer:
    """The keys and values of one layer, [B, heads, room, head_width] each; a token stands at the place of its position."""

    rewindable = True

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self._coming: Pass | None = None
        self._visible: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def shape(self) -> KeptShape:
        """Of a token."""
        return KeptShape(self.keys.shape[1], self.keys.shape[3], self.values.shape[3])

    def begin(self, coming: Pass) -> None:
        # worked out here, and not in `append`, which a compiled block takes in
        self._coming = coming
        self._visible = coming.visible
        if self._visible is not None:
            self._visible = self._visible[..., : self.keys.shape[2]]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `KeyValues.append`: what is returned is a view of what is held."""
        coming = self._coming
        assert coming is not None
        first, new = coming.longest, keys.shape[2]
        if coming.uniform:
            self.keys[:, :, first : first + new] = keys
            self.values[:, :, first : first + new] = values
        else:
            for row, (held, count) in enumerate(zip(coming.held, coming.new, strict=True)):
                self.keys[row, :, held : held + count] = keys[row, :, :count]
                self.values[row, :, held : held + count] = values[row, :, :count]
        return self.keys[:, :, : first + new], self.values[:, :, : first + new], self._visible

    def take(self, rows: Tensor) -> Self:
        return type(self)(self.keys[rows], self.values[rows])

    def crop(self, lengths: Sequence[int]) -> None:
        """Nothing to do: what follows a row's length is not seen, and is written over."""

    def snapshot(self) -> Any:
        """Nothing: what is held of the tokens up to a length does not change when more are read."""

    def restore(self, snapshot: Any) -> None:
        """Nothing, as above."""


def contiguous_layer(
    shape: KeyValueShape, rows: int, room: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> ContiguousLayer:
    """An empty layer: 2 x rows x heads x room x head_width numbers."""
    return ContiguousLayer(*torch.zeros((2, rows, shape.heads, room, shape.head_width), dtype=dtype, device=device))


class ContiguousCache(Cache):
    """A cache of `ContiguousLayer`s. Memory: of each layer 2 x rows x heads x room x head_width numbers.

    shapes: of each layer; or the state of one, where it is of another kind; or None for a layer that keeps nothing.
    """

    def __init__(
        self,
        shapes: Sequence[Any],
        rows: int,
        room: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        layers = [
            contiguous_layer(shape, rows, room, dtype, device) if isinstance(shape, KeyValueShape) else shape
            for shape in shapes
        ]
        super().__init__(layers, rows, room)

    def places(self) -> CachePlaces | None:
        """Where the pass that was begun reads and writes, for a model that reads natively: a row is a block. None where a mask says
        what is seen, rows have padding, or layers are of other kinds than keys and values of one shape, and running states."""
        coming = self._coming
        if not isinstance(coming, Pass) or coming.mask is not None or min(coming.new) < coming.length:
            return None
        if self.native_layers is None:
            return None
        length = coming.length
        spans = [BlockSpan(row * length, length, held, (row,)) for row, held in enumerate(coming.held)]
        rows = BlockRows(spans, self.native_layers.block)
        return CachePlaces(self.native_layers, rows, states=self.begun_states())

    def begun_states(self) -> list[dict[str, Tensor]]:
        """The running states at the beginning of a pass, to be written over: each in one piece, and zeros where there is nothing
        before it, whatever was read once."""
        for state in self._running:
            state.tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
            if state.fresh:
                for tensor in state.tensors.values():
                    tensor.zero_()
        return [state.tensors for state in self._running]

    @cached_property
    def _running(self) -> list[RecurrentState]:
        return [layer for layer in self.layers if isinstance(layer, RecurrentState)]

    @cached_property
    def native_layers(self) -> Layers | None:
        """Its keys and values as the library reads them; None where it cannot, or where a layer keeps what it does not know."""
        kept = [layer for layer in self.layers if layer is not None]
        if not all(isinstance(layer, ContiguousLayer | RecurrentState) for layer in kept):
            return None
        plain = [(layer.keys, layer.values) for layer in kept if isinstance(layer, ContiguousLayer)]
        try:
            return Layers(plain, self.rows, self.room)
        except ShoestringError:  # of different shapes, or of a type or device that the library does not read
            return None

    def take(self, rows: Tensor) -> "ContiguousCache":
        made = ContiguousCache([], len(rows), self.room, torch.float32)
        copied = super().take(rows)
        made.layers, made.lengths, made.left_out = copied.layers, copied.lengths, copied.left_out
        return made
