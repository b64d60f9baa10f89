"""Shapes of Llama models, and a decoder of one of them with random weights that makes a token at every run of a CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.lowbit.gpu import Order, OrderedLinear
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packing import integer

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """A Llama model: the queries', keys' and values' matrices are one, and so are the gate's and the feed-forward's first."""

    source: str
    width: int
    inner: int
    heads: int
    key_value_heads: int
    head_width: int
    layers: int
    vocabulary: int

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of the matrices of a layer."""
        attended = self.heads * self.head_width
        return {
            "qkv": (attended + 2 * self.key_value_heads * self.head_width, self.width),
            "out": (self.width, attended),
            "gate, up": (2 * self.inner, self.width),
            "down": (self.width, self.inner),
        }

    def weights(self) -> int:
        """Of all layers, without embedding and head."""
        return self.layers * sum(rows * columns for rows, columns in self.matrices().values())


SHAPES = {
    "1B": Shape("Llama 3.2 1B", 2048, 8192, 32, 8, 64, 16, 128256),
    "3B": Shape("Llama 3.2 3B", 3072, 8192, 24, 8, 128, 28, 128256),
    "7B": Shape("Llama 2 7B", 4096, 11008, 32, 32, 128, 32, 32000),
    "13B": Shape("Llama 2 13B", 5120, 13824, 40, 40, 128, 40, 32000),
    "70B": Shape("Llama 2 70B", 8192, 28672, 64, 8, 128, 80, 32000),
}


def dense(rows: int, columns: int, device: torch.device) -> nn.Module:
    """A linear layer in bfloat16 with random weights."""
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(torch.empty(rows, columns, device=device, dtype=torch.bfloat16), requires_grad=False)
    nn.init.normal_(layer.weight, std=columns**-0.5)
    return layer


def ternary(rows: int, columns: int, device: torch.device) -> nn.Module:
    """A ternary layer with random trits and one scale a row."""
    order = Order(rows, columns)
    words = torch.randint(-(2**15), 2**15, order.shape, dtype=torch.int16, device=device)
    return OrderedLinear(words, torch.full((rows, 1), (2 * columns) ** -0.5, device=device), rows, columns, "ternary2")


class Head(nn.Module):
    """The output head as integers of 8 or 4 bits."""

    def __init__(self, rows: int, columns: int, bits: int, device: torch.device) -> None:
        super().__init__()
        shape = (rows, columns) if bits == 8 else (rows, integer.row_bytes(columns))
        weight = torch.randint(-128, 128, shape, dtype=torch.int8, device=device)
        scales = torch.full((rows, 1), 2.0 ** (1 - bits) * columns**-0.5, device=device)
        held = weight if bits == 8 else weight.view(torch.uint8)
        self.table = PackedEmbedding(held, scales, rows, columns, bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.table.logits(x)


class Decoder(nn.Module):
    """One token in, the likeliest next one out, all in tensors that stay where they are. Weights are random.

    linear: makes the layers' matrices; head: the output's. context: places of the cache, of which attention reads all.
    """

    def __init__(
        self, shape: Shape, linear: Callable[[int, int], nn.Module], head: nn.Module, context: int, device: torch.device
    ) -> None:
        super().__init__()
        self.shape, kind = shape, torch.bfloat16
        self.layers = nn.ModuleList(
            nn.ModuleList(linear(*size) for size in shape.matrices().values()) for _ in range(shape.layers)
        )
        self.head = head
        self.embedding = torch.empty(shape.vocabulary, shape.width, dtype=kind, device=device).normal_()
        cache = (shape.layers, 2, 1, shape.key_value_heads, context, shape.head_width)
        self.cache = torch.zeros(cache, dtype=kind, device=device)
        angles = torch.outer(
            torch.arange(context, device=device),
            10000.0 ** (-torch.arange(0, shape.head_width, 2, device=device) / shape.head_width),
        )
        self.cos, self.sin = angles.cos().to(kind), angles.sin().to(kind)
        self.places = torch.arange(context, device=device)
        self.norm = torch.ones(shape.width, dtype=kind, device=device)
        self.token = torch.zeros(1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)

    @torch.no_grad()
    def step(self) -> None:
        """Read `token` at `place`, put the next one into `token`, go on by one place (round and round)."""
        x = self.embedding[self.token]
        seen = (self.places <= self.place)[None, None, None]
        layer: Any  # a list of modules
        for index, layer in enumerate(self.layers):
            x = x + self.attention(layer, index, F.rms_norm(x, self.norm.shape, self.norm), seen)
            gate, up = layer[2](F.rms_norm(x, self.norm.shape, self.norm)).chunk(2, -1)
            x = x + layer[3](F.silu(gate) * up)
        logits = self.head(F.rms_norm(x, self.norm.shape, self.norm))
        self.token.copy_(logits.argmax(-1))
        self.place.add_(1).remainder_(len(self.places))

    def attention(self, layer: Any, index: int, x: Tensor, seen: Tensor) -> Tensor:
        shape = self.shape
        own, shared = shape.heads, shape.key_value_heads
        heads = layer[0](x).view(1, own + 2 * shared, 1, shape.head_width)
        query, key, value = heads.split([own, shared, shared], 1)
        keys, values = self.cache[index]
        keys.index_copy_(2, self.place, self.turned(key))
        values.index_copy_(2, self.place, value)
        # the heads that share a key are so many queries of it
        queries = self.turned(query).view(1, shared, own // shared, shape.head_width)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        return layer[1](found.reshape(1, own * shape.head_width))

    def turned(self, x: Tensor) -> Tensor:
        """With its rotary position."""
        cos, sin = self.cos[self.place], self.sin[self.place]
        low, high = x.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
