"""Keys and values in 4 bits."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.kernels.attention import PAIRS_GROUP
from shoestring.method import method

BOUNDS_BYTES = 4
"""Of a group: the least and the scale."""


@method(
    "decode",
    kind="cache store",
    name="int4",
    paper="FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU, arXiv:2303.06865",
    claim="weights and cache in group-wise 4 bits with negligible loss of accuracy on OPT-175B",
    cost="width / 2 bytes a vector and 4 a group; where torch attends, each pass decodes what it reads, in memory of one layer",
)
class Int4Store:
    """Hold groups of numbers of each key and value vector in codes of 4 bits, between the least and the largest of the group.

    m = min_i x_i, s = (max_i x_i - m) / 15 (both float16), c_i = round((x_i - m) / s), and x_i is read as m + s c_i.

    group: numbers of a vector that share m and s; a vector that is shorter, or no multiple of it, is a group.

    The source groups 64 numbers of a token, of whichever heads; here no group crosses a head.
    """

    exact = False

    def __init__(self, *, group: Literal[8, 16, 32, 64, 128] = 32) -> None:
        self.group = group

    def readable(self, width: int) -> bool:
        """As `CacheStore.readable`."""
        return self.group == PAIRS_GROUP and width % PAIRS_GROUP == 0

    def empty(self, places: int, heads: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.empty`: bytes, of each vector its pairs of codes and then the bounds of its groups."""
        if width % 2:
            raise UsageError(f"int4 packs pairs of numbers, and a head of this model has {width}: take int8")
        size = width // 2 + BOUNDS_BYTES * (width // self._size(width))
        return (torch.zeros(places, heads, size, dtype=torch.int8, device=like.device),)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.encode`."""
        grouped = x.float().unflatten(-1, (-1, self._size(x.shape[-1])))
        least = grouped.amin(-1).clamp(-65504, 65504).half()
        scale = ((grouped.amax(-1) - least.float()) / 15).clamp(6.2e-5, 65504).half()
        codes = ((grouped - least.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 15)
        pairs = codes.to(torch.uint8).flatten(-2).unflatten(-1, (-1, 2))
        packed = pairs[..., 0] | (pairs[..., 1] << 4)
        bounds = torch.stack((least, scale), -1).flatten(-2)
        return (torch.cat((packed.view(torch.int8), bounds.view(torch.int8)), -1),)

    def decode(self, codes: Sequence[Tensor], like: Tensor) -> Tensor:
        """As `CacheStore.decode`."""
        half = like.shape[-1] // 2
        packed, held = codes[0][..., :half].view(torch.uint8), codes[0][..., half:]
        bounds = held.contiguous().view(torch.float16).unflatten(-1, (-1, 2))
        wide = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
        grouped = wide.float().unflatten(-1, (bounds.shape[-2], -1))
        least, scale = bounds.float().unbind(-1)
        return (least[..., None] + scale[..., None] * grouped).flatten(-2).to(like.dtype)

    def elsewhere(self, codes: Sequence[Tensor]) -> int:
        """Nothing."""
        return 0

    def _size(self, width: int) -> int:
        return self.group if width % self.group == 0 else width
