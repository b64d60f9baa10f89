"""What the codecs share: a payload checked and read piece by piece, and floats as bytes (little-endian, as all supported
machines keep them)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

LARGEST = 3.3e38
"""The largest magnitude of a scale or a level: what rounding may add to it is finite still, also in bfloat16."""


def entries(shape: Sequence[int]) -> int:
    """How many entries a tensor of this shape has."""
    return prod(shape)


def flat_float32(values: Tensor) -> Tensor:
    """The entries in row-major order, float32 [entries], free of any graph; a view where it can be one."""
    return values.detach().to(torch.float32).reshape(-1)


def as_bytes(values: Tensor) -> Tensor:
    """The bytes of a one-dimensional tensor, uint8."""
    return values.contiguous().view(torch.uint8)


def narrow(values: Tensor, levels: int = 1) -> Tensor:
    """Non-negative scales in bfloat16, so held down that `levels` times one is a finite float32 still.

    bfloat16 because it has the range of float32: pseudo-gradients of 1e-6 and less are the rule, where float16 knows no
    more than a few numbers. Its 8 significant bits move a scale by 0.2 % at most, which adds 4e-6 of the signal's energy.
    """
    return values.clamp(max=LARGEST / levels).to(torch.float32).to(torch.bfloat16)


class Reader:
    """Takes a payload apart from its front. Raises: ValueError where it is not bytes, or not as long as it must be."""

    def __init__(self, payload: Tensor, *, least: int, most: int) -> None:
        if payload.dtype != torch.uint8 or payload.ndim != 1:
            raise ValueError(f"a payload is uint8 of one dimension, not {payload.dtype} of {payload.ndim}")
        if not least <= payload.numel() <= most:
            wanted = str(most) if least == most else f"{least} to {most}"
            raise ValueError(f"a payload of {payload.numel()} bytes, where the shape needs {wanted}")
        self._payload, self._at = payload, 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return self._payload.numel() - self._at

    def take(self, size: int) -> Tensor:
        """The next bytes, uint8 [size]. Raises: ValueError where fewer are left."""
        if size > self.left:
            raise ValueError(f"a payload with {self.left} bytes left, where {size} more are needed")
        piece = self._payload[self._at : self._at + size]
        self._at += size
        return piece

    def floats(self, count: int, dtype: torch.dtype) -> Tensor:
        """The next `count` floats of a type, as float32. Raises: ValueError where one is not finite."""
        piece = self.take(count * dtype.itemsize)
        values = piece.clone().view(dtype).to(torch.float32)  # the copy is aligned, as the piece need not be
        if count and not bool(torch.stack(torch.aminmax(values)).isfinite().all()):  # either is NaN where any entry is
            raise ValueError("a payload with a number in it that is not finite")
        return values
