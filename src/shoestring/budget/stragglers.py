"""Which of several processes holds the others up, told from the phases in which each works by itself.

In a collective all wait for the last, so its seconds say nothing of who is slow: the slowest waits least. That stragglers need
tools of their own is from MegaScale: Scaling Large Language Model Training to More Than 10,000 GPUs (Jiang et al. 2024,
arXiv:2402.15627), read in its abstract alone; the measure below and its numbers are this project's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from shoestring.budget.timeline import OWN, WINDOW

SHARE = 0.25
"""Own work of a step, above the median of the other processes', from which on a process is slow: a quarter."""
LEAST = 0.002
"""Seconds of a step that are worth a word."""
LOOKS = 3
"""How often in a row a process must be found slow, at looks that are half a window of steps apart."""


@dataclass(frozen=True)
class Straggler:
    """A process that holds the others up.

    phase: in which it exceeds the others most.
    share: its own work of a step above the median of the others', as a share of that.
    seconds: the same in seconds of a step.
    """

    rank: int
    phase: str
    share: float
    seconds: float


def slow(each: Mapping[int, Mapping[str, float]], share: float = SHARE) -> list[Straggler]:
    """Those whose own work is slower than the median of the others' by `share`, by rank.

    each: median seconds by phase, by rank.
    """
    found = []
    for rank, mine in sorted(each.items()):
        others = [seconds for other, seconds in each.items() if other != rank]
        if not others or not mine or not all(others):
            continue
        usual = {phase: median(one.get(phase, 0.0) for one in others) for phase in OWN}
        whole = median(sum(one.get(phase, 0.0) for phase in OWN) for one in others)
        more = sum(mine.get(phase, 0.0) for phase in OWN) - whole
        if more >= max(share * whole, LEAST):
            phase = max(OWN, key=lambda phase: mine.get(phase, 0.0) - usual[phase])
            found.append(Straggler(rank, phase, more / whole if whole else float("inf"), more))
    return found


class StragglerWatch:
    """Looks at the processes again and again. Names each that is slow for long enough, once for each phase."""

    def __init__(self) -> None:
        self._in_a_row: dict[int, int] = {}
        self._named: set[tuple[int, str]] = set()
        self._looked = -1

    def look(self, each: Mapping[int, Mapping[str, float]], step: int) -> list[Straggler]:
        """Those that are named now.

        each: as `slow` takes it, of all processes.
        step: that all have reached. A look less than half a window after the last is none.
        """
        if not all(each.values()) or step - self._looked < WINDOW // 2:
            return []
        self._looked = step
        found = slow(each)
        self._in_a_row = {one.rank: self._in_a_row.get(one.rank, 0) + 1 for one in found}
        new = [one for one in found if self._in_a_row[one.rank] >= LOOKS and (one.rank, one.phase) not in self._named]
        self._named |= {(one.rank, one.phase) for one in new}
        return new
