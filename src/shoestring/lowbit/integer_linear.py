"""A linear layer of integers with one scale a row, whose inputs are rounded to 8 bits a token: both are multiplied as integers."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.lowbit import kernels
from shoestring.lowbit.packing import integer
from shoestring.lowbit.straight_through import straight_through


class IntegerLinear(nn.Module):
    """y = W x̂ + b. W [rows, columns] has 4 or 8 bits and a scale a row; x̂ is x rounded to int8 with a scale a token.

    x: [..., columns] of a floating type -> the same type [..., rows]. It takes a gradient, to which its rounding counts as none.
    weights: int8 [rows, columns] at 8 bits; uint8 at 4, as `packing.integer` lays it out. scales: float32 [rows, 1].
    Raises: ShoestringError where these do not fit each other.
    """

    weights: Tensor
    scales: Tensor
    bias: Tensor | None
    constant: ClassVar[bool] = True
    """As `PackedLinear.constant`."""

    def __init__(
        self, weights: Tensor, scales: Tensor, rows: int, columns: int, bits: int, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        integer.check(weights, rows, columns, bits)
        if scales.dtype != torch.float32 or scales.shape != (rows, 1):
            raise ShoestringError(f"the scales of {rows} rows are float32 [{rows}, 1], not {list(scales.shape)}")
        self.in_features, self.out_features, self.bits = columns, rows, bits
        self.register_buffer("weights", weights)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, bits: int, bias: Tensor | None = None) -> "IntegerLinear":
        """Of integers int8 [rows, columns] and float32 scales [rows, 1]; nothing is lost."""
        rows, columns = codes.shape
        weights = codes.contiguous() if bits == 8 else integer.pack(codes)
        return cls(weights, scales.contiguous(), rows, columns, bits, bias)

    def computed_weight(self) -> Tensor:
        """float32 [rows, columns]: what is multiplied by."""
        return self._rows(0, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, self._product, self._rows, self.out_features)

    def _rows(self, first: int, last: int) -> Tensor:
        part = self.weights[first:last]
        codes = part if self.bits == 8 else integer.spread(part)[:, : self.in_features]
        return codes * self.scales[first:last]

    def _product(self, x: Tensor) -> Tensor:
        flat = x.reshape(math.prod(x.shape[:-1]), self.in_features)
        flat = flat.float() if flat.is_cpu else flat
        y = kernels.int_matmul(flat, self.weights, self.scales, self.out_features, self.in_features, self.bits)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"
