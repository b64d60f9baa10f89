"""Attention of integers: int8 queries, keys and values, rotary positions from tables of int16."""

from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.model.config import ModelConfig
from shoestring.model.norm import RMSNorm
from shoestring.model.recurrent_cache import TokenMemory
from shoestring.quantise.integer_only.arithmetic import STREAM_BITS, requantise, rounded_shift, saturated
from shoestring.quantise.integer_only.linear import IntegerOnlyLinear
from shoestring.quantise.integer_only.norm import IntegerOnlyNorm
from shoestring.quantise.integer_only.part import OUTPUT, PassPlaces
from shoestring.quantise.integer_only.ranges import Ranges
from shoestring.quantise.integer_only.scales import FixedPointScales
from shoestring.quantise.integer_only.softmax import FINER, SCORE, attended

ANGLE_BITS = 14
"""Bits behind the point of sines and cosines."""

VALUE_BITS = 8
"""Bits behind the point of values in 16 bits, in units of those in 8."""


class IntegerOnlyAttention(nn.Module):
    """The counterpart of `Attention`. What is kept of a token are its keys and values, int8.

    Queries and keys leave the matrix in 16 bits, are normed and turned, and are int8 then. scales: 'query', 'key' after turning;
    'score' of a score as a power of 2; 'mixed' of what the output matrix reads.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        options = config.token_mixer.options
        queries, shared, each = config.heads, config.key_value_heads, config.head_width
        self.split, self.head_width, self.kept_width = (queries, shared, shared), each, 2 * shared * each
        bias = options.get("bias", "none")
        self.qkv = IntegerOnlyLinear(config.width, sum(self.split) * each, bias != "none")
        normed = options.get("qk_norm", True)
        self.query_norm = IntegerOnlyNorm(each, False, 16) if normed else None
        self.key_norm = IntegerOnlyNorm(each, False, 16) if normed else None
        self.scales = FixedPointScales(query=0, key=0, score=0, mixed=0)
        self.output = IntegerOnlyLinear(queries * each, config.width, bias == "all")

    @staticmethod
    def looks(part: Any, x: Tensor, cos: Tensor, sin: Tensor) -> dict[str, Tensor]:
        q, k, _ = part.qkv(x).unflatten(-1, (-1, part.head_width)).split(part.split, dim=2)
        query, key, value = part.by_heads(x, cos, sin)
        return {"projected query": q, "projected key": k, "query": query, "key": key, "value": value}

    def fill(self, part: Any, ranges: Ranges, reads: Tensor, writes: float) -> None:
        """As `part` says. Features of queries and keys are made alike: what the one is multiplied with, the other is divided by.
        Both of a pair that is turned have the same factor."""
        sizes = [ranges.features(name).clamp_min(1e-9).unflatten(0, (2, -1)).amax(0) for name in ("query", "key")]
        less = (sizes[0] / sizes[1]).sqrt().clamp(1e-2, 1e2).repeat(2)
        factors = {"query": less, "key": 1 / less}
        raw = {name: ranges.wide(16, f"projected {name}", self._before(name, factors)) for name in factors}
        values, mixed = ranges.eight("value"), ranges.eight(OUTPUT)
        eight = {name: ranges.eight(name, by) for name, by in factors.items()}
        for name, by in factors.items():
            unit, norm, own = raw[name], getattr(self, f"{name}_norm"), getattr(part, f"{name}_norm")
            if norm is not None:
                assert isinstance(own, RMSNorm)
                gain = own.weight.detach().double() / by
                # no normed number is larger than the root of the width times its gain
                wide = self.head_width**0.5 * float(gain.abs().max()) / 32767 or 1.0
                norm.fill(gain, None, own.epsilon, unit, wide)
                unit = wide
            self.scales.fill(name, unit / 2**ANGLE_BITS / eight[name])
        counts = [heads * self.head_width for heads in self.split]
        units = [self._before(name, factors).repeat(self.split[at]) * raw[name] for at, name in enumerate(factors)]
        units.append(torch.full((counts[2],), values / 2**VALUE_BITS, dtype=torch.float64))
        self.qkv.fill(part.qkv.weight, part.qkv.bias, reads, torch.cat(units))
        self.scales.fill("score", eight["query"] * eight["key"] * self.head_width**-0.5 * SCORE)
        self.scales.fill("mixed", values / 2**FINER / mixed)
        self.output.fill(part.output.weight, part.output.bias, mixed, writes)

    def _before(self, name: str, factors: dict[str, Tensor]) -> Tensor:
        """[head_width]: by what features are divided as they leave the matrix: where there is no norm that does it."""
        return factors[name] if self.query_norm is None else torch.ones_like(factors[name])

    def forward(self, x: Tensor, places: PassPlaces, kept: TokenMemory) -> Tensor:
        """As `part` says."""
        heads = self.qkv(x, 16).unflatten(-1, (-1, self.head_width))
        q, k, v = heads.split(self.split, dim=2)
        queries = self._turned("query", q, self.query_norm, places)
        keys = self._turned("key", k, self.key_norm, places)
        values = saturated(rounded_shift(v.to(torch.int32), VALUE_BITS), 8)
        del heads, q, k, v
        held, _ = kept.append(torch.cat((keys, values), 2).flatten(2))
        del keys, values
        mixed = self._attended(queries, held.unflatten(-1, (-1, self.head_width)), places)
        return self.output(mixed, STREAM_BITS)

    def _turned(self, name: str, x: Tensor, norm: IntegerOnlyNorm | None, places: PassPlaces) -> Tensor:
        """int8 [B, T, heads, head_width] of int16: normed, and turned by position."""
        if norm is not None:
            x = norm(x, 16)
        assert places.cos is not None
        assert places.sin is not None
        first, second = (half.to(torch.int32) for half in x.chunk(2, -1))
        left = (first * places.cos).sub_(second * places.sin)
        right = second.mul_(places.cos).add_(first.mul_(places.sin))
        return requantise(torch.cat((left, right), -1), *self.scales[name], 8)

    def _attended(self, queries: Tensor, held: Tensor, places: PassPlaces) -> Tensor:
        """int8 [B, T, heads x head_width] of queries [B, T, heads, D] and what is held, [B, S, 2 x key heads, D]."""
        rows, new, heads, width = queries.shape
        shared = held.shape[2] // 2
        mixed = torch.empty(rows, new, shared, heads // shared, width, dtype=torch.int8)
        grouped = queries.view(mixed.shape)
        for row, seen in places.rows():
            last = places.coming.held[row] + torch.arange(new).repeat_interleave(heads // shared)
            for head in range(shared):
                own, keys, values = grouped[row, :, head], held[row, :seen, head], held[row, :seen, shared + head]
                found = attended(own.reshape(-1, width), keys, values, last, *self.scales["score"])
                mixed[row, :, head] = requantise(found, *self.scales["mixed"], 8).view_as(own)
        return mixed.flatten(2)

    def flops(self, shape: Shape) -> int:
        """As `part` says. The product with the weights of softmax counts once, though each weight is multiplied in two halves."""
        inner = cost.attention(shape.rows, self.split[0], shape.new, shape.past + shape.new, self.head_width)
        return self.qkv.flops(shape.tokens) + self.output.flops(shape.tokens) + inner


def angles(table: Tensor) -> Tensor:
    """int16 numbers in 2^-14 of sines or cosines."""
    return (table.double() * 2**ANGLE_BITS).round().clamp(-32768, 32767).to(torch.int16)
