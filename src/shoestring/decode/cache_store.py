"""How the numbers of keys and values are held: as they are, in fewer bits, or elsewhere."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shoestring.contract.cache import KeptShape


class CacheStore(Protocol):
    """Codes of the keys or values of one layer. A place has codes of its own, so that places can be shared, moved and dropped.

    exact: whether what is read is what was written.
    """

    exact: bool

    def empty(self, places: int, heads: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
        """Room for so many places: tensors [places, heads, ...] of zeros. like: of the type and device of what is written.

        Raises: UsageError where it cannot hold vectors of this width.
        """
        ...

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The codes [n, heads, ...] of vectors x [n, heads, width]."""
        ...

    def decode(self, codes: Sequence[Tensor], like: Tensor) -> Tensor:
        """The vectors [n, heads, width] of codes, of the type and device of `like`, whose last dimension is `width`, too."""
        ...

    def readable(self, width: int) -> bool:
        """Whether the native library reads codes of such vectors where they are (`kernels.attention`), as it does vectors."""
        ...

    def elsewhere(self, codes: Sequence[Tensor]) -> int:
        """Bytes of these codes that are not in the memory of the model's device, or not in memory at all."""
        ...


class Side:
    """The keys, or the values, of one layer: [places, heads, width], held as a store holds them."""

    def __init__(self, store: CacheStore, places: int, heads: int, width: int, like: Tensor) -> None:
        self.store, self.like, self.width = store, like.new_empty(0, width), width
        self.codes = store.empty(places, heads, width, like)

    @property
    def plain(self) -> Tensor | None:
        """The vectors themselves, where they are held as they are on the model's device."""
        first = self.codes[0]
        held = len(self.codes) == 1 and first.shape[2:] == (self.width,) and first.dtype == self.like.dtype
        return first if held and self.store.exact and first.device == self.like.device else None

    @property
    def readable(self) -> Tensor | None:
        """What the native library reads and writes: the vectors themselves, or codes that it knows; None where it knows neither."""
        if self.store.readable(self.width) and len(self.codes) == 1 and not self.elsewhere and self.codes[0].is_cpu:
            return self.codes[0]
        return self.plain

    @property
    def nbytes(self) -> int:
        """Bytes in the memory of the model's device."""
        return sum(one.nbytes for one in self.codes) - self.elsewhere

    @property
    def elsewhere(self) -> int:
        """Bytes elsewhere."""
        return self.store.elsewhere(self.codes)

    def write(self, places: Tensor, x: Tensor) -> None:
        """Put vectors x [n, heads, width] to places [n]."""
        for held, codes in zip(self.codes, self.store.encode(x), strict=True):
            held[places.to(held.device)] = codes.to(held)

    def read(self, places: Tensor) -> Tensor:
        """The vectors [n, heads, width] at places [n]."""
        return self.store.decode([held[places.to(held.device)] for held in self.codes], self.like)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Put what is held at places `source`, [n] or [heads, n] of each head, to places `target` [n]."""
        for held in self.codes:
            at = source.to(held.device)
            if at.ndim == 2:
                heads = torch.arange(len(at), device=held.device)[:, None]
                moved = held[at, heads].transpose(0, 1)  # a copy: the places may overlap
            else:
                moved = held[at]
            held[target.to(held.device)] = moved


def place_bytes(store: CacheStore, shapes: Sequence[KeptShape], like: Tensor) -> tuple[int, int]:
    """(bytes in memory, bytes elsewhere) of one place in all layers."""
    sides = [
        Side(store, 1, shape.heads, width, like) for shape in shapes for width in (shape.key_width, shape.value_width)
    ]
    return sum(side.nbytes for side in sides), sum(side.elsewhere for side in sides)
