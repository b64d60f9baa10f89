"""A linear layer whose matrix is ternary and packed: what a trained `LowBitLinear` becomes to be used."""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.kernels.decoder import KernelMatrix
from shoestring.lowbit import kernels
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.packing import check_groups, check_packed, layout_named, pack, unpack
from shoestring.lowbit.packing.layout import ROWS
from shoestring.lowbit.straight_through import straight_through


class PackedLinear(nn.Module):
    """y = s W x̂, W in {-1, 0, 1} [rows, columns] packed at 2 or 1.6 bits, s the scales of its rows (or of runs of a row).

    x̂ is x rounded to int8 for each token, as `kernels.matmul` does in every implementation. x: float32 [..., columns] ->
    [..., rows]. There is no bias. The matrix is a buffer and takes no gradient; x takes one, to which the rounding counts as
    none. For counting operations it is an `nn.Linear` of `in_features` columns and `out_features` rows.

    packed: uint8, as `packing.pack` lays it out. scales: float32 [rows, groups]. layout: one of `packing.LAYOUTS`.
    Raises: ShoestringError where these do not fit each other.
    """

    packed: Tensor
    scales: Tensor
    constant: ClassVar[bool] = True
    """Its buffers never change: whoever knows the base of a run need not keep them with it."""

    def __init__(self, packed: Tensor, scales: Tensor, rows: int, columns: int, layout: str) -> None:
        super().__init__()
        check_packed(packed, rows, columns, layout)
        if scales.dtype != torch.float32 or scales.dim() != 2 or scales.shape[0] != rows or not scales.shape[1]:
            raise ShoestringError(
                f"the scales of {rows} rows are float32 [rows, groups], not {scales.dtype} {list(scales.shape)}"
            )
        check_groups(scales.shape[1], columns, layout_named(layout))
        self.in_features, self.out_features, self.layout = columns, rows, layout
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)

    @classmethod
    def of(cls, quantised: Quantised, layout: str) -> "PackedLinear":
        """Packed from codes and scales; nothing is lost. Raises: ShoestringError where a code is not -1, 0 or 1."""
        rows, columns = quantised.codes.shape
        return cls(pack(quantised.codes, layout), quantised.scales.contiguous(), rows, columns, layout)

    def quantised(self) -> Quantised:
        """The codes and scales it was made of. Raises: ShoestringError where unused places of `packed` are not filled with 0."""
        return Quantised(unpack(self.packed, self.out_features, self.in_features, self.layout), self.scales)

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, self._product, self._rows, self.out_features)

    def _rows(self, first: int, last: int) -> Tensor:
        """float32 [last - first, columns]: rows in plain numbers. first: a multiple of the rows of a block."""
        across = layout_named(self.layout).bytes(ROWS, self.in_features)
        part = self.packed[first // ROWS * across : -(-last // ROWS) * across]
        codes = unpack(part, last - first, self.in_features, self.layout)
        return Quantised(codes, self.scales[first:last]).dequantise()

    def _product(self, x: Tensor) -> Tensor:
        flat = x.reshape(math.prod(x.shape[:-1]), self.in_features)  # -1 says nothing of an empty row
        y = kernels.matmul(flat, self.packed, self.scales, self.out_features, self.in_features, self.layout)
        return y.view(*x.shape[:-1], self.out_features)

    def native_matrix(self) -> KernelMatrix:
        """As the native decoder reads it."""
        shape = self.out_features, self.in_features
        return KernelMatrix(self.packed, *shape, layout_named(self.layout).code, scales=self.scales)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        scales = self.scales
        super()._apply(fn, recurse)
        self.scales = scales.to(self.packed.device)  # float32 whatever type the model is turned into
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, layout={self.layout}"
