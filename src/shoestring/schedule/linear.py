"""Linear decay."""

from dataclasses import dataclass

from shoestring.method import Fraction, method
from shoestring.schedule.progress import between, checked


@method(
    "schedule",
    name="linear",
    paper="Straight to Zero: Why Linearly Decaying the Learning Rate to Zero Works Best for LLMs, arXiv:2502.15938",
    claim="to zero, consistently beats other schedules at compute-optimal data sizes, at the best peak rate; more "
    "so with more data",
    cost="none; the length of the run must be known",
)
@dataclass(frozen=True, kw_only=True)
class LinearDecay:
    """A straight line from 1 to the floor over the whole budget.

    Bergsma et al. (2025), arXiv:2502.15938, recommend a floor of 0. Formula: f(p) = floor + (1 - floor) (1 - p).
    """

    floor: Fraction = 0.0

    def __call__(self, progress: float) -> float:
        return between(self.floor, 1 - checked(progress))
