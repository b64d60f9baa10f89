"""A smooth function of one number as a table of integers, between which is interpolated."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shoestring.quantise.integer_only.arithmetic import rounded_shift

PARTS = 256
"""Of the range of int16: the upper 8 bits of a number are its place in the table, the lower 8 its way to the next."""


class IntegerOnlyCurve(nn.Module):
    """int16 [...] -> int16 [...] of the same scale: f(x), from a table of 257 values over the range of int16.

    table: int16 [257]. For functions with |f(x)| <= |x|, as SiLU and GELU are, so that one scale does for both. Error, in units of
    the scale: half of one for the values of the table and half of one for the result; and, in the function's own units,
    max|f''| h^2 / 8 for the straight lines, h being 256 units.
    """

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(PARTS + 1, dtype=torch.int16))

    def fill(self, function: Callable[[Tensor], Tensor], scale: float) -> None:
        """Tabulate `function`, of a number of the scale `scale`."""
        places = torch.arange(-(1 << 15), (1 << 15) + 1, (1 << 16) // PARTS, dtype=torch.float64)
        values = (function(places * scale) / scale).round().clamp(-(1 << 15) + 1, (1 << 15) - 1)
        self.table.copy_(values.to(torch.int16))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.int32) + (1 << 15)
        place, way = wide >> 8, wide & 255
        low, high = self.table[place].to(torch.int32), self.table[place + 1].to(torch.int32)
        return rounded_shift((low << 8).add_((high - low).mul_(way)), 8).to(torch.int16)
