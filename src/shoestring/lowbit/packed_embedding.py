"""A table of tokens at 8, 4 or 16 bits: the embedding, the output head, or both in one."""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.lowbit import kernels
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.packing import integer
from shoestring.lowbit.straight_through import straight_through

WIDTHS = (*integer.BITS, 16)
"""Bits of a weight. 8 and 4 are integers with one scale a row; 16 is float16, which has none."""


ROWS = 512
"""Rows of a 16-bit table that are widened at a time: few enough to stay in cache."""


class PackedEmbedding(nn.Module):
    """The rows of a matrix [rows, columns], looked up by number, and the logits of hidden states against all of them.

    Looked up, a row is its integers times its scale, or its float16 numbers: float32 [..., columns]. `logits` multiplies
    with `kernels.int_matmul`, which rounds the hidden state of each token to int8; at 16 bits with torch in float32.

    weight: int8 [rows, columns] at 8 bits; uint8 at 4, as `packing.integer` lays it out; float16 [rows, columns] at 16.
    scales: float32 [rows, 1]; None at 16 bits. Raises: ShoestringError where these do not fit each other.
    """

    weight: Tensor
    scales: Tensor | None
    constant: ClassVar[bool] = True
    """As `PackedLinear.constant`."""

    def __init__(self, weight: Tensor, scales: Tensor | None, rows: int, columns: int, bits: int) -> None:
        super().__init__()
        if bits not in WIDTHS:
            raise ShoestringError(f"a packed embedding has 4, 8 or 16 bits, not {bits}")
        if bits < 16:
            integer.check(weight, rows, columns, bits)
        elif weight.dtype != torch.float16 or weight.shape != (rows, columns):
            raise ShoestringError(
                f"a 16-bit table of {rows} x {columns} is float16 [{rows}, {columns}], "
                f"not {str(weight.dtype).removeprefix('torch.')} {list(weight.shape)}"
            )
        if bits == 16 and scales is not None:
            raise ShoestringError("a 16-bit table has no scales")
        if bits < 16 and (scales is None or scales.dtype != torch.float32 or list(scales.shape) != [rows, 1]):
            raise ShoestringError(f"a {bits}-bit table of {rows} rows has float32 scales [{rows}, 1]")
        self.num_embeddings = self.out_features = rows
        self.embedding_dim = self.in_features = columns
        self.bits = bits
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)

    @classmethod
    def of(cls, quantised: Quantised, bits: int) -> "PackedEmbedding":
        """From codes of 8 or 4 bits with a scale a row. Raises: ShoestringError where they are not."""
        rows, columns = quantised.codes.shape
        weight = integer.pack(quantised.codes) if bits == 4 else quantised.codes
        return cls(weight.contiguous(), quantised.scales, rows, columns, bits)

    def forward(self, ids: Tensor) -> Tensor:
        """float32 [..., columns]: the rows of `ids` [...]."""
        rows = self.weight[ids.flatten()]
        if self.scales is None:
            found = rows.float()
        else:
            codes = integer.unpack(rows, self.embedding_dim) if self.bits == 4 else rows
            found = codes * self.scales[ids.flatten()]
        return found.view(*ids.shape, self.embedding_dim)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., rows]: the products of hidden states, float32 [..., columns], with every row."""
        return straight_through(hidden, self._products, self._rows, self.num_embeddings)

    def computed_weight(self) -> Tensor:
        """float32 [rows, columns]: the whole table."""
        return self._rows(0, self.num_embeddings)

    def _rows(self, first: int, last: int) -> Tensor:
        found: Tensor = self(torch.arange(first, last, device=self.weight.device))
        return found

    def _products(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(math.prod(hidden.shape[:-1]), self.in_features)
        if self.scales is None:
            found = _widened(flat, self.weight)
        else:
            found = kernels.int_matmul(flat, self.weight, self.scales, self.out_features, self.in_features, self.bits)
        return found.view(*hidden.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedEmbedding":
        scales = self.scales
        super()._apply(fn, recurse)
        if scales is not None:
            self.scales = scales.to(self.weight.device)  # float32 whatever type the model is turned into
        return self

    def extra_repr(self) -> str:
        return f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}, bits={self.bits}"


def _widened(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in float32. torch's own float16 product rounds its results to float16, so that logits tie."""
    out = x.new_empty(len(x), len(weight))
    room = x.new_empty(min(ROWS, len(weight)), weight.shape[1])
    for start in range(0, len(weight), ROWS):
        part = weight[start : start + ROWS]
        out[:, start : start + ROWS] = x @ room[: len(part)].copy_(part).T
    return out
