"""WSD-S: one constant trunk with a decay that ends at each of several shares of the budget."""

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MinLen

from shoestring.errors import UsageError
from shoestring.method import Fraction, method
from shoestring.schedule.progress import Share, between, checked
from shoestring.schedule.shapes import SHAPES


@method(
    "schedule",
    name="wsd_s",
    paper="Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective, arXiv:2410.05192",
    claim="beats WSD and cyclic cosine at giving checkpoints for several budgets in one run, from 0.1 B to 1.2 B "
    "parameters",
    cost="none a step; each early branch spends its decay at less than the full rate",
)
@dataclass(frozen=True, kw_only=True)
class WSDS:
    """Constant at 1, but decayed to the floor over the last `decay` share of each branch, then at once back to 1.

    Wen et al. (2024), arXiv:2410.05192: the run goes on from the decayed checkpoint, so the steps of every decay are used
    again, where branches off a trunk would throw them away. Formula, for branches b_1 < b_2 < ... < b_n = 1 and the
    branch b = min {b_i: p <= b_i} that p belongs to:

        f(p) = floor + (1 - floor) shape(s),    s = max(0, 1 - (b - p) / (decay b))

    with shape(s) = 1 - s ('linear'), 1 - sqrt(s) ('1-sqrt') or (1 + cos(pi s)) / 2 ('cosine'); 'inverse' is the paper's
    own, in which 1 / f rises in a straight line: f(p) = 1 / ((1 - s) + s / floor).

    branches: shares of the budget, rising, the last of them 1. decay: share of a branch's own budget, all that was spent
    since the start of the run, so a longer branch has a longer decay and ends as a `wsd` run of that budget would.
    Differs: the paper decays over a tenth with 'inverse' to a floor of 0.1; the defaults here are those of `wsd` but for a
    shorter decay, which leaves more of the budget at the full rate.
    Raises: UsageError where the branches do not rise to 1, where a decay would begin before the branch below has ended,
    and where 'inverse' has no floor to fall to.

    shape: of each decay: 'linear', '1-sqrt', 'cosine' or 'inverse'.
    """

    branches: Annotated[tuple[Share, ...], MinLen(1)] = (0.25, 0.5, 1.0)
    decay: Share = 0.2
    shape: Literal["linear", "1-sqrt", "cosine", "inverse"] = "1-sqrt"
    floor: Fraction = 0.0

    def __post_init__(self) -> None:
        listed = ", ".join(f"{branch:g}" for branch in self.branches)
        if self.branches[-1] != 1 or any(one >= other for one, other in itertools.pairwise(self.branches)):
            raise UsageError(f"wsd_s: branches = ({listed}) must rise, and end at 1, the whole budget")
        for ended, branch in itertools.pairwise(self.branches):
            if branch * (1 - self.decay) < ended:
                raise UsageError(
                    f"wsd_s: the decay of branch {branch:g} would begin at {branch * (1 - self.decay):.4g}, before branch "
                    f"{ended:g} has ended: take decay below {1 - ended / branch:.4g}, or branches further apart"
                )
        if self.shape == "inverse" and self.floor == 0:
            raise UsageError("wsd_s: shape = 'inverse' never falls to 0: set a floor, such as the paper's 0.1")

    @property
    def milestones(self) -> tuple[float, ...]:
        """The shares of the budget at which a decay has ended. The checkpoint to keep is the one after the last step
        begun at or before that share: the next step is at the full rate again."""
        return self.branches

    def __call__(self, progress: float) -> float:
        progress = checked(progress)
        branch = self.branches[bisect_left(self.branches, progress)]
        left = (branch - progress) / (self.decay * branch)
        if left >= 1:
            return 1.0
        if self.shape == "inverse":
            return self.floor / (self.floor * left + (1 - left))
        return between(self.floor, SHAPES[self.shape](1 - left))
