"""One range for all that a matrix reads, found on text beforehand."""

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.config import Choice
from shoestring.method import Iterations, method
from shoestring.quantise.inputs import InputRounding

NARROWEST = 0.2
"""Of the whole range, where narrower ones are tried."""


@method(
    "quantise",
    kind="activations",
    name="static",
    paper="MobileQuant: Mobile-friendly Quantization for On-device Language Models, arXiv:2408.13933",
    claim="near-lossless with 8-bit activations in ranges that are fixed beforehand, as phones' integer units want them",
    cost="2 `clips` roundings of up to 512 tokens of calibration for each matrix; where the model runs a pass over what is read",
)
class StaticRounding(InputRounding):
    """Round all that a matrix reads to 2^b equal steps of one range.

    Tan et al. (2024), arXiv:2408.13933. With a range [l, h] that holds 0, and s = (h - l) / (2^b - 1), z = round(-l / s):

        x~ = s (clip(round(x / s) + z, 0, 2^b - 1) - z)

    l and h are min(x, 0) and max(x, 0) over 512 tokens of the calibration text, each times the share that leaves the least squared
    error: of h first, and then of l, `clips` of them from 1 down to a fifth. Differs: the paper learns ranges together with scales
    between layers, end to end; here each range is chosen by itself, after any --transform, on what the layers before make once
    they are rounded.

    bits: b. clips: ranges that are tried; 1: the whole one alone.
    """

    reads = True

    def __init__(self, *, bits: Annotated[int, Interval(ge=2, le=8)] = 8, clips: Iterations = 20) -> None:
        self.bits, self.clips = bits, clips

    @property
    def choice(self) -> Choice:
        return Choice.of("quantise", "static", kind="activations", bits=self.bits, clips=self.clips)

    parameters = ("range",)

    def settle(self, seen: Tensor) -> dict[str, Tensor]:
        """As `InputRounding.settle`: 'range', float32 [2], its low and high end."""
        best = torch.stack([seen.min().clamp_max(0), seen.max().clamp_min(0)]).float()
        for end in (1, 0):
            whole, least = best.clone(), torch.inf
            for place in range(self.clips):
                tried = whole.clone()
                tried[end] *= 1 - (1 - NARROWEST) * place / max(self.clips - 1, 1)
                lost = float((self.round(seen, {"range": tried}) - seen).square().double().sum())
                if lost < least:
                    best, least = tried, lost
        return {"range": best}

    def round(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """As `InputRounding.round`."""
        low, high = parameters["range"].to(x.device)
        most = (1 << self.bits) - 1
        step = (high - low) / most
        if float(step) == 0:
            return torch.zeros_like(x)
        zero = (-low / step).round()
        codes = ((x.float() / step).round() + zero).clamp(0, most)
        return ((codes - zero) * step).to(x.dtype)
