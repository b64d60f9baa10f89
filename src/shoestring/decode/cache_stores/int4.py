"""Keys and values in 4 bits."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "decode",
    kind="cache store",
    name="int4",
    paper="FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU, arXiv:2303.06865",
    claim="weights and cache in group-wise 4 bits with negligible loss of accuracy on OPT-175B",
    cost="width / 2 bytes a vector and 4 a group; each pass decodes what it reads, in memory of one layer",
)
class Int4Store:
    """Hold groups of numbers of each key and value vector in codes of 4 bits, between the least and the largest of the group.

    m = min_i x_i, s = (max_i x_i - m) / 15 (both float16), c_i = round((x_i - m) / s), and x_i is read as m + s c_i.

    group: numbers of a vector that share m and s; a vector that is shorter, or no multiple of it, is a group.

    The source groups 64 numbers of a token, of whichever heads; here no group crosses a head.
    """

    exact = False
    readable = False

    def __init__(self, *, group: Literal[8, 16, 32, 64, 128] = 32) -> None:
        self.group = group

    def empty(self, places: int, heads: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.empty`."""
        if width % 2:
            raise UsageError(f"int4 packs pairs of numbers, and a head of this model has {width}: take int8")
        groups = width // self._size(width)
        codes = torch.zeros(places, heads, width // 2, dtype=torch.uint8, device=like.device)
        bounds = torch.zeros(places, heads, groups, 2, dtype=torch.float16, device=like.device)
        return codes, bounds

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.encode`."""
        grouped = x.float().unflatten(-1, (-1, self._size(x.shape[-1])))
        least = grouped.amin(-1).clamp(-65504, 65504).half()
        scale = ((grouped.amax(-1) - least.float()) / 15).clamp(6.2e-5, 65504).half()
        codes = ((grouped - least.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 15)
        pairs = codes.to(torch.uint8).flatten(-2).unflatten(-1, (-1, 2))
        return pairs[..., 0] | (pairs[..., 1] << 4), torch.stack((least, scale), -1)

    def decode(self, codes: Sequence[Tensor], like: Tensor) -> Tensor:
        """As `CacheStore.decode`."""
        packed, bounds = codes
        wide = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
        grouped = wide.float().unflatten(-1, (bounds.shape[-2], -1))
        least, scale = bounds.float().unbind(-1)
        return (least[..., None] + scale[..., None] * grouped).flatten(-2).to(like.dtype)

    def elsewhere(self, codes: Sequence[Tensor]) -> int:
        """Nothing."""
        return 0

    def _size(self, width: int) -> int:
        return self.group if width % self.group == 0 else width
