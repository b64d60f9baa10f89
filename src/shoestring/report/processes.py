"""The processes of a run: what each noted of its last steps, and what was noticed of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoestring.budget.stragglers import SHARE
from shoestring.budget.timeline import OWN, WAITS, PhaseStretch, medians
from shoestring.json_files import Row, damaged, read_lines

_NUMBERS = {"rank", "step", "begin", "end", "offset", "offset_error", "share", "goes_on"}
LONGEST = 1e10
"""Seconds that no clock shows."""


@dataclass(frozen=True)
class Process:
    """One process. steps: (step, seconds by phase) of its last ones. stretches: on the clock of rank 0.

    offset_error: seconds by which its clock may be off.
    """

    rank: int
    host: str
    steps: list[tuple[int, dict[str, float]]]
    stretches: list[PhaseStretch]
    offset_error: float = 0.0

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds of each phase of a step, over all that are kept; empty of none."""
        return medians(sums for _, sums in self.steps)

    @property
    def own(self) -> float:
        """Seconds of a step in which it works by itself."""
        return sum(self.medians.get(phase, 0.0) for phase in OWN)


@dataclass(frozen=True)
class RunProcesses:
    """All processes of a run, by rank, and the lines of events.jsonl."""

    each: list[Process] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)

    @property
    def restarts(self) -> list[Row]:
        return [event for event in self.events if event.get("event") == "restart"]

    @property
    def stragglers(self) -> list[Row]:
        """Those that were named while the run went on, the last word on each rank and phase."""
        found = [event for event in self.events if event.get("event") == "straggler"]
        return list({(event.get("rank"), str(event.get("phase"))): event for event in found}.values())


def read_processes(folder: Path) -> RunProcesses:
    """Raises: ShoestringError, naming file and line, when a file is damaged."""
    paths = [folder / "timeline.jsonl", *sorted((folder / "workers").glob("*/timeline.jsonl"))]
    each = [process for path in paths if (process := _read(path)) is not None]
    events = [row for _, row in read_lines(folder / "events.jsonl", _NUMBERS)]
    return RunProcesses(sorted(each, key=lambda process: process.rank), events)


def _read(path: Path) -> Process | None:
    rows = read_lines(path, _NUMBERS)
    if not rows:
        return None
    (number, head), *rest = rows
    if not isinstance(head.get("rank"), int):
        raise damaged(path, number, "the first line of a timeline has the rank of its process")
    steps: list[tuple[int, dict[str, float]]] = []
    stretches: list[PhaseStretch] = []
    for number, row in rest:
        step, seconds = row.get("step"), row.get("seconds")
        if isinstance(seconds, dict) and isinstance(step, int) and all(map(_is_time, seconds.values())):
            steps.append((step, {str(phase): float(each) for phase, each in seconds.items()}))
        elif isinstance(row.get("phase"), str) and isinstance(step, int) and _is_stretch(row):
            stretches.append(PhaseStretch(row["phase"], step, float(row["begin"]), float(row["end"])))
        else:
            raise damaged(path, number, "neither a step nor a stretch of a timeline")
    return Process(head["rank"], str(head.get("host", "")), steps, stretches, float(head.get("offset_error") or 0.0))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < LONGEST


def _is_stretch(row: Row) -> bool:
    begin, end = row.get("begin"), row.get("end")
    return _is_time(begin) and _is_time(end) and begin <= end  # type: ignore[operator]


@dataclass(frozen=True)
class Cell:
    """A median of the heat table, in milliseconds. more: above the median of the others, as a share; None where that tells
    nothing: who waits long is not slow."""

    milliseconds: float
    more: float | None = None

    @property
    def heat(self) -> int:
        """How strong its colour is, from 0 to 60 %."""
        return 0 if self.more is None else round(60 * min(max(self.more, 0.0), 1.0))

    @property
    def told(self) -> bool:
        return self.more is not None and self.more >= SHARE


def heat_table(processes: Sequence[Process]) -> tuple[list[str], list[tuple[Process, list[Cell]]]]:
    """(columns, a row for each process): medians of each phase of a step, and of a process's own work, beside the others'."""
    shown = [process for process in processes if process.medians]
    waits = [wait for wait in WAITS if any(process.medians[wait] for process in shown)]
    rows = []
    for process in shown:
        others = [other for other in shown if other is not process]
        whole = _middle([other.own for other in others])
        cells = []
        for phase in OWN:
            mine = process.medians[phase]
            excess = mine - _middle([other.medians[phase] for other in others])
            # as a share of a whole step's own work: a tenfold of nothing is nothing
            cells.append(Cell(1000 * mine, excess / whole if others and whole else None))
        cells.append(Cell(1000 * process.own, (process.own - whole) / whole if others and whole else None))
        rows.append((process, cells + [Cell(1000 * process.medians[wait]) for wait in waits]))
    return [*OWN, "own work", *waits], rows


def _middle(values: Sequence[float]) -> float:
    ordered = sorted(values)
    if not ordered:
        return 0.0
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
