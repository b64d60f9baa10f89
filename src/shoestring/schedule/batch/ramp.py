"""A batch that grows in a straight line."""

from dataclasses import dataclass

from shoestring.method import method
from shoestring.schedule.progress import Share, between, checked


@method(
    "schedule",
    kind="batch",
    name="ramp",
    paper="Language Models are Few-Shot Learners, arXiv:2005.14165",
    claim="none was measured in the paper, which says that GPT-3 was trained so",
    cost="more steps a token early on, each less efficient on wide hardware",
)
@dataclass(frozen=True, kw_only=True)
class RampBatch:
    """A straight line from the `start` share of the full batch to all of it, over the first `over` share of the budget.

    Brown et al. (2020), arXiv:2005.14165, appendix B: GPT-3's batch grew linearly from 32 thousand tokens to the full
    0.5 to 3.2 million over the first 4 to 12 of 300 billion tokens. Formula: share(p) = start + (1 - start) min(1, p / over).
    In a budget of tokens p counts tokens, as there. Why it should pay: the gradient noise scale grows as the loss falls
    (McCandlish et al. 2018, arXiv:1812.06162). Differs: the defaults suit budgets thousands of times smaller.

    start: the share of the batch at the first step.
    over: the share of the budget in which it grows to the whole.
    """

    start: Share = 0.25
    over: Share = 0.25

    def __call__(self, progress: float) -> float:
        return between(self.start, min(1.0, checked(progress) / self.over))
