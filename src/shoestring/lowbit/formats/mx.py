"""MX formats to train for: small elements, and a power of two for each block."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shoestring.lowbit.format import Format
from shoestring.method import method

MXElement = Literal["int8", "fp6_e2m3", "fp4_e2m1"]

UNITS: dict[str, tuple[float, int, int]] = {
    "int8": (1 / 64, 0, 8),
    "fp6_e2m3": (1 / 8, 2, 6),
    "fp4_e2m1": (1 / 2, 2, 4),
}
"""Of each element: the number that all are multiples of, the greatest exponent, and bits."""

MULTIPLES: dict[str, tuple[int, ...]] = {
    "int8": tuple(range(128)),
    "fp6_e2m3": (*range(16), *range(16, 32, 2), *range(32, 64, 4)),
    "fp4_e2m1": (0, 1, 2, 3, 4, 6, 8, 12),
}
"""The elements that are not negative, as multiples of their unit, in the order of their bits."""


@method(
    "lowbit",
    kind="format",
    name="mx",
    paper="Microscaling Data Formats for Deep Learning, arXiv:2310.10537",
    claim="generative language models trained with weights, activations and gradients below 8 bits, with minimal loss",
    cost="while training, a few passes over the weights for every forward pass; then 8.25, 6.25 or 4.25 bits a weight",
)
@dataclass(frozen=True, kw_only=True)
class MX(Format):
    """Round to small floating-point or integer elements times a power of two that a block shares.

    Rouhani et al. (2023), arXiv:2310.10537. For a block W and elements whose greatest exponent is e:

        X = 2^(floor(log2 max |W|) - e),    W~ = X element(W / X), to the nearest, ties to the even mantissa

    and beyond the largest element that one. Codes here are the elements as multiples of the unit that they have in common, and
    scales X times that unit; so FP8 and FP6 E3M2, which span more than a byte, are not among them
    (`quantise.formats.microscaling` has all).
    Blocks of the paper are 32 columns of a row: scale = 'group', group = 32, as the edit has them. Differs: weights alone are so;
    activations and gradients are not.

    element: which.
    """

    element: MXElement = "fp4_e2m1"

    @property
    def bits(self) -> float:
        return float(UNITS[self.element][2])

    @property
    def largest(self) -> int:
        return MULTIPLES[self.element][-1]

    def block_scales(self, blocks: Tensor) -> Tensor:
        unit, top, _ = UNITS[self.element]
        most = blocks.abs().amax(1, keepdim=True)
        power = torch.pow(2.0, (torch.frexp(most).exponent - 1 - top).double()).float() * unit
        return torch.where(most == 0, 0.0, torch.where(most.isfinite(), power, most))

    def _round(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        blocks, _ = self.groups(weight.shape[0], weight.shape[1])
        view = weight.float().reshape(blocks, weight.numel() // blocks)
        scales = self.block_scales(view)
        places = view / scales.where(scales != 0, 1.0)
        known = torch.tensor(MULTIPLES[self.element], dtype=torch.float32, device=view.device)
        middle, size = (known[1:] + known[:-1]) / 2, places.abs().contiguous()
        low, high = torch.searchsorted(middle, size), torch.searchsorted(middle, size, right=True)
        nearest = known[torch.where((low != high) & (low % 2 == 1), high, low)]
        codes = nearest * places.sign()
        return codes.add(0.0), scales
