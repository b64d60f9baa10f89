"""StatsQ: codes half-way between whole numbers, with a scale from the mean of the absolute weights."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from shoestring.lowbit.format import Format
from shoestring.method import method

StatsBits = Annotated[int, Interval(ge=2, le=7)]


@method(
    "lowbit",
    kind="format",
    name="statsq",
    paper="Oscillation-free Quantization for Low-bit Vision Transformers, arXiv:2302.02210",
    claim="with two more techniques, 2-bit DeiT-T and DeiT-S 9.8% and 7.7% above the previous best on ImageNet",
    cost="while training, a few passes over the weights for every forward pass; then bits / 8 bytes a weight",
)
@dataclass(frozen=True, kw_only=True)
class StatsQ(Format):
    """Round to the nearest of 2^bits numbers around 0, equally spaced, with no 0 among them; the scale is statistical, not learned.

    Liu et al. (2023), arXiv:2302.02210. For a block W of latent weights, b bits and n = 2^(b - 1):

        s = 2 mean |W|,    k = round(n clip(W / s, -1, 1) - 1/2) in -n .. n - 1,    W~ = s (k + 1/2) / n

    Codes here are the odd numbers 2 k + 1, and scales s / (2 n). Learned scales make weights go to and fro between two codes;
    this one changes slowly. Differs: the gradient passes straight through where a weight is clipped, too. The paper's other two,
    freezing weights that are sure (CGA) and joining queries and keys (QKR), are not part of a number format. The paper has a
    scale for each row, the default here.

    bits: of a weight, its sign included.
    """

    bits: StatsBits = 2

    @property
    def largest(self) -> int:
        return int(2**self.bits - 1)

    def block_scales(self, blocks: Tensor) -> Tensor:
        mean = blocks.abs().double().mean(1, keepdim=True).float()
        return 2 * mean / (1 << self.bits)

    def _round(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        blocks, _ = self.groups(weight.shape[0], weight.shape[1])
        view = weight.float().reshape(blocks, weight.numel() // blocks)
        scales = self.block_scales(view)
        places = view / scales.where(scales != 0, 1.0)
        codes = 2 * ((places - 1) / 2).round() + 1  # the nearest odd number
        return codes.clamp(-self.largest, self.largest) * (scales != 0), scales
