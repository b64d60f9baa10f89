"""Keys and values in 8 bits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.kernels.attention import SCALE_BYTES
from shoestring.method import method


@method(
    "decode",
    kind="cache store",
    name="int8",
    paper="LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, arXiv:2208.07339",
    claim="absmax codes of 8 bits a vector lose almost nothing where no feature is an outlier",
    cost="width + 2 bytes a vector; where torch attends, each pass decodes what it reads, in memory of one layer",
)
class Int8Store:
    """Hold each key and value vector in codes of 8 bits with a scale of its own.

    s = max_i |x_i| / 127 (float16), c_i = round(x_i / s), and x_i is read as s c_i. x: [width] of a head of a token.

    The source quantises activations of matrix products so (row-wise absmax); its outlier features, kept apart in 16 bits, are not
    kept apart here.
    """

    exact = False

    def readable(self, width: int) -> bool:
        """As `CacheStore.readable`."""
        return True

    def empty(self, places: int, heads: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.empty`: bytes, of each vector its codes and then its scale."""
        return (torch.zeros(places, heads, width + SCALE_BYTES, dtype=torch.uint8, device=like.device),)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.encode`."""
        wide = x.float()
        # the scale as it is kept, so that codes fit it; its least normal value keeps zeros from dividing
        scale = (wide.abs().amax(-1, keepdim=True) / 127).clamp(6.2e-5, 65504).half()
        codes = (wide / scale.float()).round().clamp(-127, 127).to(torch.int8)
        return (torch.cat((codes.view(torch.uint8), scale.view(torch.uint8)), -1),)

    def decode(self, codes: Sequence[Tensor], like: Tensor) -> Tensor:
        """As `CacheStore.decode`."""
        held = codes[0]
        scale = held[..., -SCALE_BYTES:].contiguous().view(torch.float16)
        return (held[..., :-SCALE_BYTES].view(torch.int8).float() * scale.float()).to(like.dtype)

    def elsewhere(self, codes: Sequence[Tensor]) -> int:
        """Nothing."""
        return 0
