"""What decides when quantisation-aware training begins, and how the learning rate goes with it.

A rule is a registered method (`kind="quantise"`): for the size of a run it gives the share of the budget from which on the
weights are quantised. What is trained before that, at full precision, only prepares it.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from shoestring.errors import UsageError
from shoestring.schedule.progress import Schedule
from shoestring.schedule.wsd import WSD


@dataclass(frozen=True)
class Extent:
    """The size of a run. parameters: of the model. tokens: it will be trained on; 0 = not known. bits: of a quantised weight."""

    parameters: int
    tokens: float
    bits: float


class Quantise(Protocol):
    """What `@method("schedule", kind="quantise", ...)` registers."""

    def start(self, extent: Extent) -> float:
        """The share of the budget, below 1, from which on the weights are quantised. Raises: UsageError where `extent` does
        not say what the rule must know."""
        ...

    def joined(self, schedule: Schedule, start: float) -> Schedule:
        """`schedule` as it is to be when the weights are quantised from `start` on. Raises: UsageError where the two do not
        go together."""
        ...


def fused(schedule: Schedule, start: float) -> Schedule:
    """A WSD schedule whose decay begins at `start`, so that the learning rate falls while the weights are quantised and not
    before. Raises: UsageError for another schedule."""
    if not isinstance(schedule, WSD):
        name = type(schedule).__module__.rpartition(".")[2]  # a method is in the file of its name
        raise UsageError(
            f"fused = true moves the decay of schedule = wsd, and this is {name}: give wsd, or fused = false"
        )
    return replace(schedule, decay=1 - start)
