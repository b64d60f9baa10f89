"""Refined linear decay: the schedule that a past run's gradient norms call for."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import BeforeValidator, ValidationInfo

from shoestring.method import Fraction, Positive, method
from shoestring.schedule.progress import Share, checked
from shoestring.schedule.refinement import gradient_norms, refined_points


def _read(given: Any, info: ValidationInfo) -> Any:
    """The points that a run folder's name stands for; anything else as it is, for the field's own check."""
    if isinstance(given, str) and {"smoothing", "exponent"} <= info.data.keys():
        return refined_points(*gradient_norms(given), **info.data)
    return given


Points = Annotated[tuple[Fraction, ...], MinLen(2), BeforeValidator(_read)]
"""Factors at equal steps of progress from 0 to 1, or the path of a run folder that they are drawn from."""


@method(
    "schedule",
    name="refined",
    paper="When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement, arXiv:2310.07831",
    claim="better than linear decay: its warm-up and its last fall are fitted to the task",
    cost="a run of the same recipe before it, whose gradient norms it is drawn from",
)
@dataclass(frozen=True, kw_only=True)
class Refined:
    """The curve refined from a past run's gradient norms, in straight lines between its points.

    Defazio, Cutkosky, Mehta & Mishchenko (2023), arXiv:2310.07831; the formula is at `refinement.refined_points`.
    Formula here: f(p) = (1 - u) points[i] + u points[i + 1], with i + u = p (len(points) - 1) and u in [0, 1).

    points: the path of a run folder, which is read when the option is, or the factors themselves. What is kept, and
    written to a configuration, is always the factors, so a run is rebuilt when the past one is gone; `smoothing` (width of
    the median filter, as a share of the run) and `exponent` (of the norm) say how a path is read, and change nothing where
    the factors are given. The curve brings its own warm-up where the norms ask for one: use it without another.

    Differs: a run folder holds the 2-norm, before clipping, of one step in so many, so for Adam and its like, for which
    the paper takes w = 1 / |g|_1, the default takes 1 / |g|_2, the same where the gradient's sparsity does not change; an
    exponent of 2 is the paper's for SGD. The curve is drawn over progress, brought to a thousand equal steps and kept at
    each hundredth.
    Raises: UsageError where the path is no whole run with undamaged metrics.

    smoothing: width of the median filter over the gradient norms, as a share of the run.
    exponent: of the gradient norm in the refined rate.
    """

    smoothing: Share = 0.1
    exponent: Positive = 1.0
    points: Points

    def __call__(self, progress: float) -> float:
        place = checked(progress) * (len(self.points) - 1)
        before = min(int(place), len(self.points) - 2)
        past = place - before
        return (1 - past) * self.points[before] + past * self.points[before + 1]
