"""Warmup-stable-decay: constant, then a decay over the last part of the budget."""

from dataclasses import dataclass
from typing import Literal

from shoestring.method import Fraction, method
from shoestring.schedule.progress import Share, between, checked
from shoestring.schedule.shapes import SHAPES


@method(
    "schedule",
    name="wsd",
    paper="MiniCPM: Unveiling the Potential of Small Language Models ..., arXiv:2404.06395",
    claim="conducive to continuous training and domain adaptation: data scaling is studied without training anew "
    "for each length",
    cost="none; the length must be known only when the decay begins",
)
@dataclass(frozen=True, kw_only=True)
class WSD:
    """Constant at 1, then a decay to the floor over the last `decay` share of the budget.

    Hu et al. (2024), arXiv:2404.06395; the shape '1-sqrt' is from Hägele et al. (2024), arXiv:2405.18392, who find it
    better than 'linear'. Formula: f(p) = floor + (1 - floor) shape(s), with s = max(0, 1 - (1 - p) / decay).
    The warm-up is `with_warmup`, for this schedule as for any. Differs: MiniCPM decays exponentially, over a tenth.

    decay: the share of the budget that the decay takes, at its end.
    shape: of the decay: 'linear', '1-sqrt' or 'cosine'.
    """

    decay: Share = 0.3
    shape: Literal["linear", "1-sqrt", "cosine"] = "1-sqrt"
    floor: Fraction = 0.0

    def __call__(self, progress: float) -> float:
        left = (1 - checked(progress)) / self.decay
        return between(self.floor, SHAPES[self.shape](1 - left)) if left < 1 else 1.0
