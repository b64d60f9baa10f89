"""What workers settle among themselves, so that all of them take the same steps: when to end, to stop, to save."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wish:
    """What one worker would do now. left: steps that its budget still has room for (infinite where it cannot tell yet).
    stop: asked to stop. save: a checkpoint is due."""

    left: float = math.inf
    stop: bool = False
    save: bool = False

    def note(self) -> dict[str, Any]:
        """As it travels with an exchange."""
        return {"left": int(self.left) if math.isfinite(self.left) else None, "stop": self.stop, "save": self.save}


class Agreement:
    """Several workers: each tells the others its wishes with every exchange, and all do what the notes of one exchange say.

    The fewest steps left ends the run for all at one step; whoever is asked to stop stops all, and the leader's checkpoint
    is everybody's, both at the step at which that exchange was merged. gap: the most steps from one exchange's start to the
    next one's end; an end that lies beyond it is settled by a later exchange.
    """

    def __init__(self, gap: int) -> None:
        self.gap = gap
        self.end: int | None = None
        self.stop = self.save = False

    def hear(self, begun: int, notes: Sequence[Mapping[str, Any] | None]) -> None:
        """Take in the notes of an exchange that began after `begun` steps, by rank; None is of a worker that gave none."""
        heard = [note for note in notes if note is not None]
        left = [note["left"] for note in heard if note["left"] is not None]
        if left and min(left) <= self.gap:
            end = begun + min(left)
            self.end = end if self.end is None else min(self.end, end)
        self.stop = self.stop or any(note["stop"] for note in heard)
        self.save = bool(heard) and notes[0] is not None and bool(notes[0]["save"])

    def settle(self, step: int, wish: Wish) -> Wish:
        """What to do after `step` steps."""
        save, self.save = self.save, False
        left = math.inf if self.end is None else self.end - step
        return Wish(left=left, stop=self.stop, save=save)
