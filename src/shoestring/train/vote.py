"""How workers that exchange decide together: when the run ends, when all stop, and when all save."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Vote:
    """What one worker would do now, or what all of them do.

    left: steps that its budget still has room for; infinite where it cannot tell yet.
    stop: it was asked to stop.
    save: a checkpoint is due.
    """

    left: float = math.inf
    stop: bool = False
    save: bool = False

    def note(self) -> dict[str, Any]:
        """As it travels with an exchange."""
        return {"left": int(self.left) if math.isfinite(self.left) else None, "stop": self.stop, "save": self.save}


class VoteCount:
    """Counts the votes of several workers: each sends its vote with every exchange, and all follow those of one exchange.

    The fewest steps left end the run for all at one step. A worker that is asked to stop stops all. The leader's checkpoint is
    everybody's. Both happen at the step at which that exchange was merged.

    gap: the most steps from one exchange's start to the next one's end; an end beyond it is left to a later exchange.
    """

    def __init__(self, gap: int) -> None:
        self.gap = gap
        self.end: int | None = None
        self.stop = self.save = False

    def count(self, begun: int, notes: Sequence[Mapping[str, Any] | None]) -> None:
        """Count the votes of an exchange.

        begun: steps before the exchange began.
        notes: of each worker by rank; None where it sent none.
        """
        votes = [note for note in notes if note is not None]
        left = [vote["left"] for vote in votes if vote["left"] is not None]
        if left and min(left) <= self.gap:
            end = begun + min(left)
            self.end = end if self.end is None else min(self.end, end)
        self.stop = self.stop or any(vote["stop"] for vote in votes)
        self.save = bool(votes) and notes[0] is not None and bool(notes[0]["save"])

    def decide(self, step: int) -> Vote:
        """What all workers do after `step` steps."""
        save, self.save = self.save, False
        left = math.inf if self.end is None else self.end - step
        return Vote(left=left, stop=self.stop, save=save)
