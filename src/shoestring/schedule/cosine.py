"""Cosine decay."""

import math
from dataclasses import dataclass

from shoestring.method import Fraction, method
from shoestring.schedule.progress import between, checked


@method(
    "schedule",
    name="cosine",
    paper="SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv:1608.03983",
    claim="annealing with warm restarts improves anytime performance on CIFAR; here one period without restarts, as "
    "language models have it",
    cost="none; the length of the run must be known",
)
@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine wave from 1 to the floor over the whole budget, without restarts.

    Loshchilov & Hutter (2017), arXiv:1608.03983. Formula: f(p) = floor + (1 - floor) (1 + cos(pi p)) / 2. The default
    floor of a tenth is the custom of language model pre-training.
    """

    floor: Fraction = 0.1

    def __call__(self, progress: float) -> float:
        return between(self.floor, (1 + math.cos(math.pi * checked(progress))) / 2)
