"""Signed integers of 2 to 8 bits, times a scale."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from shoestring.lowbit.format import Format
from shoestring.method import method

Bits = Annotated[int, Interval(ge=2, le=8)]


@method(
    "lowbit",
    kind="format",
    name="integer",
    paper="LLM-QAT: Data-Free Quantization Aware Training for Large Language Models, arXiv:2305.17888",
    claim="below 8 bits large improvements over rounding without training, on LLaMA of 7 B to 30 B down to 4 bits",
    cost="while training, a few passes over the weights for every forward pass; then bits / 8 bytes a weight",
)
@dataclass(frozen=True, kw_only=True)
class Integer(Format):
    """Round to the nearest of the integers from -(2^(bits-1) - 1) to 2^(bits-1) - 1, times a scale; symmetric about 0.

    The MinMax quantiser of Liu et al. (2023), arXiv:2305.17888, without a zero point. For a block W of latent weights:

        q = 2^(bits-1) - 1,    s = max |W| / q,    W~ = s round(W / s)

    with halves to the even code. A block of zeros has s = 0. Nothing is clipped, and the gradient passes straight through,
    none through s. bits = 2 has the codes of `ternary` with a scale that leaves most of them 0.
    The paper has a scale for each row.

    bits: of a weight, its sign included.
    """

    bits: Bits = 4

    @property
    def largest(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def block_scales(self, blocks: Tensor) -> Tensor:
        return blocks.abs().amax(1, keepdim=True) / self.largest
