"""A batch that grows in jumps."""

import itertools
from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval, MinLen

from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.schedule.progress import Share, checked

Growth = Annotated[float, Interval(gt=1, le=1e6)]


@method(
    "schedule",
    kind="batch",
    name="stepped",
    paper="Don't Decay the Learning Rate, Increase the Batch Size, arXiv:1711.00489",
    claim="the same learning curve as with a decaying learning rate, in fewer updates",
    cost="more steps a token early on, each less efficient on wide hardware",
)
@dataclass(frozen=True, kw_only=True)
class SteppedBatch:
    """The batch multiplied by `factor` at each share of the budget in `at`; the full batch after the last.

    Smith, Kindermans, Ying & Le (2018), arXiv:1711.00489: SGD's noise scale is g ~ lr N / B, for a training set of N
    examples, so to multiply B by a factor does what to divide the learning rate by it does; they use a factor of 5 at 0.3,
    0.6 and 0.8 of the run, where step decays had divided by 5. Formula: share(p) = factor^-|{a in at: p < a}|. The default
    factor of 2 gives the doubling form. The learning rate's own schedule is apart: take `constant` with it for the paper's
    exchange. For Adam the exchange is by the square root, see `schedule.batch_rule.square_root`.
    Raises: UsageError where `at` does not rise.

    at: shares of the budget at which the batch is multiplied.
    factor: by which it is multiplied there.
    """

    at: Annotated[tuple[Share, ...], MinLen(1)] = (0.3, 0.6, 0.8)
    factor: Growth = 2.0

    def __post_init__(self) -> None:
        if any(one >= other for one, other in itertools.pairwise(self.at)):
            raise UsageError(f"stepped: at = ({', '.join(f'{share:g}' for share in self.at)}) must rise")

    def __call__(self, progress: float) -> float:
        return float(self.factor ** (bisect_right(self.at, checked(progress)) - len(self.at)))
