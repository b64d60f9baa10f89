"""Embedding and output head of integers: tables of int8 with a multiplier a row, as wide as the model or narrow."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shoestring.quantise.integer_only.arithmetic import STREAM_BITS, fixed_point, product, requantise, rounded_shift
from shoestring.quantise.integer_only.linear import multiplied, row_codes
from shoestring.quantise.integer_only.scales import FixedPointScales


class IntegerOnlyTable(nn.Module):
    """A row for each token. codes: int8 [V, inside]. multiplier: int32 [V], of the scales of the rows."""

    codes: Tensor
    multiplier: Tensor

    def __init__(self, vocabulary: int, inside: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(vocabulary, inside, dtype=torch.int8))
        self.register_buffer("multiplier", torch.zeros(vocabulary, dtype=torch.int32))

    def fill(self, weight: Tensor, unit: float) -> int:
        """Take in a table. The scale of a row is near multiplier x unit / 2^shift. Returns the shift."""
        codes, scale = row_codes(weight)
        multiplier, shift = fixed_point(scale / unit)
        self.codes.copy_(codes)
        self.multiplier.copy_(multiplier)
        return shift


class IntegerOnlyEmbedding(nn.Module):
    """int64 ids [B, T] -> int32 [B, T, width], the stream as it begins.

    narrow: int8 [inside, width], the matrix of `NanoEmbedding`, of one scale; None where the table is as wide as the model.
    scales: 'features', of each feature of the stream: a tied table has columns as the head wants them.
    """

    narrow: Tensor | None

    def __init__(self, vocabulary: int, width: int, inside: int | None) -> None:
        super().__init__()
        self.table = IntegerOnlyTable(vocabulary, inside or width)
        self._down = head_shift(inside) if inside else 7  # so that 31 bits are left of a row times its multiplier
        self.scales = FixedPointScales(features=width)
        self.register_buffer("narrow", torch.zeros(inside, width, dtype=torch.int8) if inside else None)

    def fill(self, weight: Tensor, narrow: Tensor | None, writes: float, columns: Tensor) -> tuple[float, float]:
        """Take in a table, and what makes it as wide as the model.

        writes: the scale of the stream, with the model's factor on what enters it. columns: float64 [width], what columns are
        multiplied with in the codes. Returns (the unit of the rows' scales, as `IntegerOnlyTable.fill` has it and 2^shift in it;
        the scale of the narrow matrix).
        """
        own, table = 1.0, weight.detach().double()
        if self.narrow is not None and narrow is not None:
            codes, scale = row_codes((narrow.detach().double() * columns).reshape(1, -1))
            self.narrow.copy_(codes.view_as(narrow))
            own = float(scale)
        else:
            table = table * columns
        unit = 2.0 ** -self.table.fill(table, 1.0)
        self.scales.fill("features", unit * own * 2.0**self._down / writes / columns)
        return unit, own

    def forward(self, ids: Tensor) -> Tensor:
        codes, multiplier = self.table.codes[ids], self.table.multiplier[ids][..., None]
        if self.narrow is not None:
            codes = product(codes.flatten(0, -2), self.narrow.t()).view(*ids.shape, -1)
        rows = rounded_shift(codes.to(torch.int64).mul_(multiplier), self._down)
        return requantise(rows, *self.scales["features"], STREAM_BITS)


def head_shift(inside: int) -> int:
    """How far logits are shifted: no sum of `inside` products of codes leaves 32 bits then."""
    return 14 + math.ceil(math.log2(inside))


class IntegerOnlyHead(NamedTuple):
    """The `Head` of an integer-only model.

    table: of the output. narrow: int8 [inside, width], which the table is read through; None: it is as wide as the model.
    scales: 'narrowed', of what comes out of that.
    shift: int32, as `head_shift` has it. scale: of a logit.
    """

    table: IntegerOnlyTable
    narrow: Tensor | None
    scales: FixedPointScales
    shift: Tensor
    scale: float
    weight: None = None

    def integers(self, hidden: Tensor) -> Tensor:
        """int32 [..., V] of int8 [..., width]: logits in units of `scale`."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self.narrow is not None:
            flat = requantise(product(flat, self.narrow), *self.scales["narrowed"], 8)
        made = multiplied(flat, self.table.codes, self.table.multiplier, self.shift, 32)
        return made.view(*hidden.shape[:-1], len(self.table.codes))

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., V]: the integers times their scale, for whoever samples or scores. Nothing before it is no integer."""
        return self.integers(hidden).float().mul_(self.scale)

    def flops(self, places: int) -> int:
        narrow = 0 if self.narrow is None else self.narrow.numel()
        return 2 * places * (self.table.codes.numel() + narrow)
