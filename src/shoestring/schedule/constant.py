"""A constant learning rate."""

from dataclasses import dataclass

from shoestring.method import method
from shoestring.schedule.progress import checked


@method(
    "schedule",
    name="constant",
    paper="The Road Less Scheduled, arXiv:2405.15682",
    claim="under Schedule-Free, which averages the weights, no schedule is needed and the run may stop anywhere",
    cost="none; without averaging, the loss at the end is that of an undecayed rate",
)
@dataclass(frozen=True, kw_only=True)
class Constant:
    """The full learning rate from the first step to the last.

    For the Schedule-Free optimisers of Defazio et al. (2024), arXiv:2405.15682, and for a trunk from which other runs
    branch. Formula: f(p) = 1. The warm-up is `with_warmup`, which Schedule-Free wants too.
    """

    def __call__(self, progress: float) -> float:
        checked(progress)
        return 1.0
