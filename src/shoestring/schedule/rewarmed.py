"""Re-warming and re-decaying: how to go on training a model whose rate had fallen already."""

import math
from dataclasses import dataclass

from shoestring.errors import UsageError
from shoestring.method import Fraction, method
from shoestring.schedule.progress import Share, between, checked


@method(
    "schedule",
    name="rewarmed",
    paper="Simple and Scalable Strategies to Continually Pre-train Large Language Models, arXiv:2403.08763",
    claim="re-warming and re-decaying the rate, with replay of old data, matches re-training from scratch on all data, by loss "
    "and by an average of benchmarks",
    cost="none; the length of the run must be known",
)
@dataclass(frozen=True, kw_only=True)
class Rewarmed:
    """A straight rise from the rate at which training had ended to the peak, then half a cosine down to it again.

    Ibrahim et al. (2024), arXiv:2403.08763, after Gupta et al. (2023), arXiv:2308.04014. In shares of the budget, the peak being 1:

        p <= warmup:  f(p) = floor + (1 - floor) p / warmup
        p > warmup:   f(p) = floor + (1 - floor) (1 + cos(pi (p - warmup) / (1 - warmup))) / 2

    It has its own warm-up: set train.warmup to 0. A high peak costs forgetting, so the papers replay old text with it: 5 % for a
    weak shift of the data, 25 % or more for a strong one.

    warmup: the share of the budget that the rise takes; the paper finds that its length matters little.
    floor: what the run began with, as a share of the peak, and ends with.
    """

    warmup: Share = 1 / 64
    floor: Fraction = 0.1

    def __post_init__(self) -> None:
        if self.warmup >= 1:
            raise UsageError("rewarmed: warmup = 1 leaves nothing for the fall after it")

    def __call__(self, progress: float) -> float:
        progress = checked(progress)
        if progress <= self.warmup:
            return between(self.floor, progress / self.warmup)
        return between(self.floor, (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2)
