"""A linear layer of int8 weights with a scale a row, and the fixed-point multipliers that its accumulators take."""

import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.quantise.integer_only.arithmetic import TYPES, fixed_point, product, requantise

LARGEST = 127
"""Of a code: -128 is left out."""

ROWS = 256
"""Outputs that are computed at a time: their accumulators are wider than what is kept of them."""

BIAS = 2.0**30
"""A bias in units of the accumulator is kept below this."""


def row_codes(weight: Tensor, least: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(codes int8 of the shape of `weight`, scale of each row, float64 [rows]): rounded to the nearest.

    weight: [rows, columns]. least: what a scale is at least. Raises: ShoestringError where a number is not finite.
    """
    weight = weight.detach().double()
    if not bool(weight.isfinite().all()):
        raise ShoestringError("a weight is NaN or infinite: it has no code")
    scale = weight.abs().amax(1) / LARGEST
    if least is not None:
        scale = torch.maximum(scale, least)
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def multiplied(
    x: Tensor, codes: Tensor, multiplier: Tensor, shift: Tensor, bits: int, bias: Tensor | None = None
) -> Tensor:
    """(W x + b) scaled: int8 [n, columns] -> of so many bits [n, rows]. The rest as `IntegerOnlyLinear` has it."""
    made = torch.empty(len(x), len(codes), dtype=TYPES[bits])
    for start in range(0, len(codes), ROWS):
        some = slice(start, start + ROWS)
        found = product(x, codes[some])
        if bias is not None:
            found.add_(bias[some])
        made[:, some] = requantise(found, multiplier[some], shift, bits)
    return made


class IntegerOnlyLinear(nn.Module):
    """y = (W x + b) scaled: int8 [..., columns] -> integers of so many bits as are asked for [..., rows].

    codes: int8 [rows, columns]. multiplier: int32 [rows]; shift: int32, one: the ratio of scales of each row. bias: int32 [rows],
    in units of the accumulator; None: no bias.
    """

    codes: Tensor
    multiplier: Tensor
    shift: Tensor
    bias: Tensor | None

    def __init__(self, columns: int, rows: int, bias: bool = False) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("multiplier", torch.zeros(rows, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros((), dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(rows, dtype=torch.int32) if bias else None)

    def fill(self, weight: Tensor, bias: Tensor | None, reads: Tensor | float, writes: Tensor | float) -> None:
        """Take in the weights of a layer. reads: the scale of its inputs, one or [columns]. writes: of its outputs, one or
        [rows]."""
        least = None if bias is None else bias.detach().double().abs() / BIAS
        codes, scale = row_codes(weight.detach().double() * reads, least)
        multiplier, shift = fixed_point(scale / writes)
        self.codes.copy_(codes)
        self.multiplier.copy_(multiplier)
        self.shift.fill_(shift)
        if self.bias is not None and bias is not None:
            self.bias.copy_((bias.detach().double() / scale).round().to(torch.int32))

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """bits: of the outputs."""
        made = multiplied(x.reshape(-1, x.shape[-1]), self.codes, self.multiplier, self.shift, bits, self.bias)
        return made.view(*x.shape[:-1], len(self.codes))

    def flops(self, places: int) -> int:
        """Operations at so many places, in the convention of `contract.cost`."""
        return 2 * places * self.codes.numel()
