"""The timeline of a process: when each phase of its last steps began and ended, in memory of a fixed size.

The ledger tells of every change of phase, with the reading of its clock that it has taken anyway. A change costs about a
microsecond: a tuple, and a sum in a dictionary.
"""

import json
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

OWN = ("data", "forward and backward", "optimiser")
"""Phases of a step in which a process works by itself: one that is slower here makes the others wait."""
WAITS = ("communication", "exchange")
"""Phases of a step in which processes wait for each other: the slowest of them waits least."""
OTHERS = ("evaluation", "checkpoint", "start")
"""Phases that are no part of a step."""

NAMES = {
    "compute": "forward and backward",
    "sync_exposed": "exchange",
    "evaluate": "evaluation",
    "compile": "start",
    "measure": "start",
}
"""Phase by cause on the ledger, where it has another name."""

STRETCHES, STEPS = 2048, 64
"""How many stretches, and sums of how many steps, are kept."""
SHORTEST = 20e-6
"""Seconds of a stretch that is kept; shorter ones are in the sums alone."""
WINDOW = 16
"""Steps whose median is taken."""


@dataclass(frozen=True)
class PhaseStretch:
    """A stretch of one phase. step: that was begun last. begin, end: seconds."""

    phase: str
    step: int
    begin: float
    end: float


class Timeline:
    """Notes phases as they change, of the last `STRETCHES` and the last `STEPS` steps. Another thread may read.

    host: of this process.
    rank: of this process.
    """

    def __init__(self, rank: int = 0, host: str | None = None) -> None:
        self.rank, self.host = rank, socket.gethostname() if host is None else host
        self.offset = self.offset_error = 0.0
        self.phase, self.step = "idle", -1
        self._since = 0.0
        self._stretches: deque[tuple[str, int, float, float]] = deque(maxlen=STRETCHES)
        self._steps: deque[tuple[int, dict[str, float]]] = deque(maxlen=STEPS)
        self._sums: dict[str, float] = {}

    def switch(self, phase: str, at: float) -> None:
        """A phase begins. phase: of those above, a cause of the ledger, or 'idle'. at: the clock's reading, seconds."""
        phase = NAMES.get(phase, phase)
        before = self.phase
        if phase == before:
            return
        if before != "idle":
            if at - self._since >= SHORTEST:
                self._stretches.append((before, self.step, self._since, at))
            self._sums[before] = self._sums.get(before, 0.0) + at - self._since
        self.phase, self._since = phase, at

    def begin_step(self, step: int) -> None:
        """A step begins: what comes until the next one is summed up with it. step: its number, as metrics have it."""
        if self.step >= 0 and "start" not in self._sums:  # in a first step torch sets itself up
            self._steps.append((self.step, self._sums))
        self.step, self._sums = step, {}

    def stretches(self) -> list[PhaseStretch]:
        return [PhaseStretch(*each) for each in _copied(self._stretches)]

    def steps(self) -> list[tuple[int, dict[str, float]]]:
        """(step, seconds by phase) of the steps that have ended."""
        return _copied(self._steps)

    def medians(self, window: int = WINDOW) -> dict[str, float]:
        """Median seconds of each phase of a step, over the last `window` steps; empty where there are not so many yet."""
        return medians([sums for _, sums in self.steps()[-window:]], window)

    def status(self) -> dict[str, Any]:
        """Where the process stands, as JSON values."""
        return {"host": self.host, "phase": self.phase, "step": self.step, "medians": self.medians()}

    def lines(self) -> str:
        """As a file: a line of the process, then its steps, then its stretches, on the clock of rank 0."""
        rows: list[dict[str, Any]] = [
            {"rank": self.rank, "host": self.host, "offset": self.offset, "offset_error": self.offset_error}
        ]
        rows += [{"step": step, "seconds": _rounded(sums)} for step, sums in self.steps()]
        rows += [
            {
                "phase": each.phase,
                "step": each.step,
                "begin": round(each.begin - self.offset, 6),
                "end": round(each.end - self.offset, 6),
            }
            for each in self.stretches()
        ]
        return "".join(json.dumps(row) + "\n" for row in rows)


def medians(steps: Iterable[Mapping[str, float]], least: int = 1) -> dict[str, float]:
    """Median seconds of each phase of a step (`OWN` and `WAITS`); empty of fewer than `least` steps."""
    found = list(steps)
    if len(found) < max(least, 1):
        return {}
    return {phase: round(median(sums.get(phase, 0.0) for sums in found), 6) for phase in (*OWN, *WAITS)}


def _rounded(sums: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(seconds, 6) for phase, seconds in sums.items()}


def _copied(kept: "deque[Any]") -> list[Any]:
    """What another thread may be adding to."""
    while True:
        try:
            return list(kept)
        except RuntimeError:
            continue
