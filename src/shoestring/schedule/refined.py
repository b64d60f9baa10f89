"""Refined linear decay: the schedule that a past run's gradient norms call for."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval, MinLen
from pydantic import BeforeValidator, ConfigDict, ValidationInfo

from shoestring.method import Fraction, Positive, method
from shoestring.schedule.progress import Share, checked
from shoestring.schedule.refinement import Norm, cost_of, gradient_norms, refined_points

Spent = Annotated[float, Interval(ge=0, le=1e30)]
"""Of any resource: a large run's FLOPs too."""


@dataclass(frozen=True)
class Curve:
    """factors: at equal steps of progress from 0 to 1. seconds, flops, tokens: what the run spent that they are drawn from."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    factors: Annotated[tuple[Fraction, ...], MinLen(2)]
    seconds: Spent = 0.0
    flops: Spent = 0.0
    tokens: Spent = 0.0


def _read(given: Any, info: ValidationInfo) -> Any:
    """The curve that a run folder's name stands for; factors alone as a curve that cost nothing."""
    if isinstance(given, str) and {"smoothing", "exponent", "norm"} <= info.data.keys():
        options = {key: info.data[key] for key in ("smoothing", "exponent")}
        factors = refined_points(*gradient_norms(given, info.data["norm"]), **options)
        return {"factors": factors, **cost_of(given)}
    return {"factors": given} if isinstance(given, list | tuple) else given


Points = Annotated[Curve, BeforeValidator(_read)]
"""A curve, its factors alone, or the path of a run folder that it is drawn from."""


@method(
    "schedule",
    name="refined",
    paper="When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement, arXiv:2310.07831",
    claim="a further gain on linear decay, with a warm-up and a last fall fitted to the task, "
    "over 10 deep learning problems, a series of LLMs and logistic regressions",
    cost="a run of the same recipe before it, whose gradient norms it is drawn from",
)
@dataclass(frozen=True, kw_only=True)
class Refined:
    """The curve refined from a past run's gradient norms, in straight lines between its points.

    Defazio, Cutkosky, Mehta & Mishchenko (2023), arXiv:2310.07831; the formula is at `refinement.refined_points`.
    Formula here: f(p) = (1 - u) factors[i] + u factors[i + 1], with i + u = p (len(factors) - 1) and u in [0, 1).

    points: the path of a finished run's folder, which is read when the option is; or the factors themselves; or a table of
    `factors` and what the run spent that they are from (`seconds`, `flops`, `tokens`). What is kept, and written to a
    configuration, is always that table, so a run is rebuilt when the past one is gone, and what it spent stays charged
    (`spent_before`). The curve brings its own warm-up where the norms ask for one: use it without another.

    The other options say how a path is read, and change nothing where factors are given. The defaults are the paper's for
    Adam: w = 1 / |g|_1; for SGD it takes w = 1 / |g|_2^2: norm = 'l2', exponent = 2.

    norm: of the gradients: 'l1' or 'l2'.
    smoothing: width of the median filter, as a share of the run.
    exponent: of the norm.

    Differs: the norms are those before clipping of one step in so many; of several workers, the largest. The curve is drawn
    over progress, brought to a thousand equal steps and kept at each hundredth.
    Raises: UsageError where the path is no finished run with undamaged metrics.

    smoothing: width of the median filter over the gradient norms, as a share of the run.
    exponent: of the gradient norm in the refined rate.
    """

    smoothing: Share = 0.1
    exponent: Positive = 1.0
    norm: Norm = "l1"
    points: Points

    @property
    def spent_before(self) -> dict[str, float]:
        """seconds, flops and tokens of the run that the curve is drawn from; 0 where that is not known."""
        return {unit: getattr(self.points, unit) for unit in ("seconds", "flops", "tokens")}

    def __call__(self, progress: float) -> float:
        factors = self.points.factors
        place = checked(progress) * (len(factors) - 1)
        before = min(int(place), len(factors) - 2)
        past = place - before
        return (1 - past) * factors[before] + past * factors[before + 1]
