"""Warm-up, laid over any schedule."""

from dataclasses import dataclass

from shoestring.schedule.progress import Schedule, checked


@dataclass(frozen=True)
class Warmup:
    """A schedule multiplied by a straight ramp from 0 to 1 over the first `share` of the budget.

    Gradual warm-up is from Goyal et al. (2017), arXiv:1706.02677. The schedule below keeps its own clock: a decay over
    the last 0.3 of the budget stays there, and one that falls from the start has already fallen a little (by `share`
    for 'linear') when the ramp ends. At progress 0 the factor is 0, so a step taken there moves nothing.

    Raises: ValueError where `share` is not in (0, 1].
    """

    schedule: Schedule
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"warm-up takes a share of the budget in (0, 1], not {self.share}")

    def __call__(self, progress: float) -> float:
        return min(1.0, checked(progress) / self.share) * self.schedule(progress)


def with_warmup(schedule: Schedule, share: float) -> Schedule:
    """`schedule` under a warm-up over the first `share` of the budget; itself where `share` is 0.

    Raises: ValueError where `share` is not in [0, 1].
    """
    return schedule if share == 0 else Warmup(schedule, share)
