"""One length for each stretch of the run."""

import numpy as np

from shoestring.data.length import require_divisor
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method


@method(
    "data",
    kind="length",
    name="length_stages",
    paper="What is the Best Sequence Length for BABYLM?, arXiv:2510.19493",
    claim="longer is often better, but the best length depends on task and architecture: short rows suffice for grammar, long ones "
    "help morphological analogies",
    cost="attention over shorter rows costs less; nothing else",
)
class LengthStages:
    """Rows of a constant length within each stage, which ends at a share of the budget. One stage trains at one short length.

    The paper compares runs of one length each, 64 to 8192, at a fixed amount of computation; several stages in one run
    are an addition, in the manner of curricula that begin with short rows.

    stages: lengths, in places; each divides the context.
    until: shares of the budget at which the stages end, ascending, but for that of the last.
    """

    def __init__(self, context: int, *, stages: tuple[Count, ...], until: tuple[Fraction, ...] = ()) -> None:
        if len(stages) != len(until) + 1:
            raise UsageError(
                f"length_stages: {len(until)} ends are of {len(until) + 1} stages, and there are {len(stages)} lengths"
            )
        if list(until) != sorted(set(until)):
            raise UsageError(f"length_stages: until = {', '.join(map(str, until))} must ascend")
        self._stages = tuple(require_divisor(length, context, "length_stages: stages") for length in stages)
        self._until = np.array(until)

    def lengths(self) -> tuple[int, ...]:
        return self._stages

    def __call__(self, step: int, progress: float) -> int:
        return self._stages[int(np.searchsorted(self._until, progress, side="right"))]
