"""Goodput: the share of a run's seconds that went into steps it kept, and where the others went."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoestring.budget.ledger import COMPUTE, RESTART, SYNC_EXPOSED, Totals
from shoestring.json_files import is_number


@dataclass(frozen=True)
class Goodput:
    """Seconds of one process, by what became of them.

    useful: computing steps that the run kept.
    waiting: for other processes, in those steps and between them.
    lost: in steps that were made again, as far as they were written down before their process ended.
    restarting: from the last word of a process that was lost until all are started again.
    other: reading and preparing text, evaluations, checkpoints, starting, and the rest.
    """

    useful: float
    waiting: float
    lost: float
    restarting: float
    other: float

    @property
    def total(self) -> float:
        return self.useful + self.waiting + self.lost + self.restarting + self.other

    def share(self, seconds: float) -> float:
        return seconds / self.total if self.total else 0.0


def lost_seconds(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by cause of steps that were lost, from the lines of a ledger."""
    lost: dict[str, float] = {}
    for row in rows:
        found = row.get("lost_seconds")
        if row.get("event") == "resume" and isinstance(found, Mapping):
            for cause, seconds in found.items():
                if is_number(seconds) and seconds > 0:
                    lost[cause] = lost.get(cause, 0.0) + seconds
    return lost


def goodput(totals: Totals, lost: Mapping[str, float]) -> Goodput:
    """What became of the seconds of a ledger. lost: as `lost_seconds` gives it."""
    seconds = totals.seconds

    def kept(cause: str) -> float:
        return max(seconds.get(cause, 0.0) - lost.get(cause, 0.0), 0.0)

    known = kept(COMPUTE), kept(SYNC_EXPOSED), sum(lost.values()), seconds.get(RESTART, 0.0)
    return Goodput(*known, other=max(totals.wall_clock - sum(known), 0.0))
