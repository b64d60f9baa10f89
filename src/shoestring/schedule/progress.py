"""What every schedule is: a function from progress to a factor on the learning rate."""

from typing import Annotated, Protocol

from annotated_types import Interval

Share = Annotated[float, Interval(gt=0, le=1)]
"""A part of the budget that cannot be empty."""


class Schedule(Protocol):
    """progress, the spent share of the binding budget in [0, 1] -> the factor on each learning rate, in [0, 1].

    A run may overshoot its budget by a step, so progress above 1 counts as 1. Raises: ValueError, below 0 or for NaN.
    """

    def __call__(self, progress: float) -> float: ...


def checked(progress: float) -> float:
    """`progress` as a schedule may use it, in [0, 1]. Raises: ValueError, below 0 or for NaN."""
    if not progress >= 0:  # NaN compares false
        raise ValueError(f"progress is the spent share of the budget, 0 or more, not {progress}")
    return min(progress, 1.0)


def between(floor: float, height: float) -> float:
    """From floor (height 0) to 1 (height 1); both ends are exact, whatever the rounding between."""
    return height + (1 - height) * floor
