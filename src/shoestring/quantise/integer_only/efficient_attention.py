"""Efficient attention of EmbBERT with integers: int8 tokens are their own keys and values."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.model.config import ModelConfig
from shoestring.model.recurrent_cache import TokenMemory
from shoestring.model.short_convolution import short_convolution
from shoestring.quantise.integer_only.arithmetic import STREAM_BITS, fixed_point, requantise
from shoestring.quantise.integer_only.curve import IntegerOnlyCurve
from shoestring.quantise.integer_only.linear import IntegerOnlyLinear, row_codes
from shoestring.quantise.integer_only.part import PassPlaces
from shoestring.quantise.integer_only.ranges import Ranges
from shoestring.quantise.integer_only.scales import FixedPointScales
from shoestring.quantise.integer_only.softmax import FINER, SCORE, attended


class IntegerOnlyEfficientAttention(nn.Module):
    """The counterpart of `EfficientAttention`. What is kept of a token is the token itself, int8.

    The two weights l_1 and -l_2, and the scales of the two halves that the output matrix reads, are in that matrix's columns.
    scales: 'score' of a score as a power of 2; 'mixed' of the first half, 'near' of the second, which the output matrix reads.
    taps: int8 [width, kernel]; multiplier, shift: of each feature's convolution.
    """

    even = True
    taps: Tensor
    multiplier: Tensor
    shift: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.kernel, self.kept_width = int(config.token_mixer.options.get("kernel", 32)), width
        self.query = IntegerOnlyLinear(width, width)
        self.register_buffer("taps", torch.zeros(width, self.kernel, dtype=torch.int8))
        self.register_buffer("multiplier", torch.zeros(width, dtype=torch.int32))
        self.register_buffer("shift", torch.ones((), dtype=torch.int32))
        self.silu = IntegerOnlyCurve()
        self.scales = FixedPointScales(score=0, mixed=0, near=0)
        self.output = IntegerOnlyLinear(2 * width, width)

    @staticmethod
    def looks(part: Any, x: Tensor, cos: Tensor, sin: Tensor) -> dict[str, Tensor]:
        near = short_convolution(x, part.taps)[0]
        return {"query": part.query(x), "convolved": near, "near": F.silu(near)}

    def fill(self, part: Any, ranges: Ranges, reads: Tensor, writes: float) -> None:
        """As `part` says."""
        unit = float(reads[0])  # one for all, as `even` says
        query, convolved, near = ranges.eight("query"), ranges.wide(16, "convolved"), ranges.eight("near")
        self.query.fill(part.query.weight, None, unit, query)
        codes, scale = row_codes(part.taps)
        multiplier, shift = fixed_point(scale * unit / convolved)
        self.taps.copy_(codes)
        self.multiplier.copy_(multiplier)
        self.shift.fill_(shift)
        self.silu.fill(F.silu, convolved)
        width = len(self.taps)
        self.scales.fill("score", query * unit * (width // self.heads) ** -0.5 * SCORE)
        self.scales.fill("mixed", 2.0**-FINER)  # a mean of tokens is in the unit of tokens
        self.scales.fill("near", convolved / near)
        gains = part.gains.detach().double()
        first, second = ((a * b).sum().exp() for a, b in (gains[:2], gains[2:]))
        columns = torch.cat((first * unit * torch.ones(width), -second * near * torch.ones(width)))
        self.output.fill(part.output.weight.detach().double() * columns, None, 1.0, writes)

    def forward(self, x: Tensor, places: PassPlaces, kept: TokenMemory) -> Tensor:
        """As `part` says."""
        near = self._near(x, kept.before(self.kernel - 1))
        held, _ = kept.append(x)
        queries = self.query(x, 8).unflatten(-1, (self.heads, -1))
        mixed = torch.empty_like(queries)
        seen = held.unflatten(-1, (self.heads, -1))
        for row, end in places.rows():
            last = places.coming.held[row] + torch.arange(x.shape[1])
            for head in range(self.heads):
                tokens = seen[row, :end, head]
                found = attended(queries[row, :, head], tokens, tokens, last, *self.scales["score"])
                mixed[row, :, head] = requantise(found, *self.scales["mixed"], 8)
        return self.output(torch.cat((mixed.flatten(2), near), -1), STREAM_BITS)

    def _near(self, x: Tensor, past: Tensor) -> Tensor:
        """int8 [B, T, width]: SiLU of the convolution of x, before which `past` was."""
        whole, length = torch.cat((past, x), 1), x.shape[1]
        found = torch.zeros(x.shape, dtype=torch.int32)
        for tap in range(self.kernel):
            found.add_(whole[:, tap : tap + length].to(torch.int32).mul_(self.taps[:, tap]))
        convolved = requantise(found, self.multiplier, self.shift, 16)
        return requantise(self.silu(convolved), *self.scales["near"], 8)

    def flops(self, shape: Shape) -> int:
        """As `part` says. As of the layer in floating point, the convolution is not counted."""
        width = len(self.taps)
        inner = cost.attention(shape.rows, self.heads, shape.new, shape.past + shape.new, width // self.heads)
        return self.query.flops(shape.tokens) + self.output.flops(shape.tokens) + inner
