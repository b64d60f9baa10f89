"""The ledger: everything a run spends, written as it is spent, in one append-only file.

Time is attributed to exactly one cause at a moment: a clock opened inside another pauses the outer one, and time under
no clock is 'idle', so the causes add up to the wall clock. Only 'sync_hidden', exchange that went on while the model
computed, overlaps the others and stays out of that sum.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import psutil

from shoestring.errors import ShoestringError

CAUSES = (
    "compute",
    "data",
    "sync_exposed",
    "sync_hidden",
    "evaluate",
    "checkpoint",
    "measure",
    "start",
    "compile",
    "idle",
)
"""What time is spent on. measure: timing which arithmetic pays, and planning by it. start: looking at the machine, building
the model, and a process's first step, where torch sets itself up. compile: the compiler, and a first step that compiles.
Ledgers of 0.1.0 have all three under 'compile'."""


@dataclass(frozen=True)
class Totals:
    """Sums over a ledger. seconds: by cause. flops, tokens: retained in the model. discarded, flops_discarded: spent on
    work that was lost (a killed run repeats what followed its last checkpoint). sent, received: bytes.
    peak_memory: bytes, the largest resident set of the process (and of the accelerator, where there is one). Counts are
    whole numbers, so a resumed run's progress is exactly the uninterrupted one's."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    flops: int = 0
    tokens: int = 0
    discarded: int = 0
    flops_discarded: int = 0
    sent: int = 0
    received: int = 0
    peak_memory: int = 0

    @property
    def wall_clock(self) -> float:
        return sum(seconds for cause, seconds in self.seconds.items() if cause != "sync_hidden")

    def plus(self, line: Mapping[str, Any]) -> "Totals":
        """These totals with one ledger line added."""
        seconds = dict(self.seconds)
        for cause, more in line.get("seconds", {}).items():
            seconds[cause] = seconds.get(cause, 0.0) + more
        added = {key: getattr(self, key) + line.get(key, 0) for key in _COUNTED}
        return Totals(seconds=seconds, peak_memory=max(self.peak_memory, line.get("peak_memory", 0)), **added)


_COUNTED = ("flops", "tokens", "discarded", "flops_discarded", "sent", "received")


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger; a torn last line (the process died while writing it) is left out.

    Raises: ShoestringError when any other line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entries.append(json.loads(line))
        except ValueError:
            raise ShoestringError(f"{path}, line {number}, is damaged: not a ledger line") from None
    return entries


def peak_memory() -> int:
    """Bytes: the peak resident set of this process, plus the accelerator's peak where one is in use."""
    resident = psutil.Process().memory_info()
    peak = getattr(resident, "peak_wset", 0)
    if not peak:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak += torch.cuda.max_memory_allocated()
    return int(peak)


class Ledger:
    """Charges what is spent and appends it to `path` (None: kept in memory only).

    Opening the ledger of an earlier run continues it: its totals count, the time between the two processes does not.
    since: the clock's reading when the spending began, where that was before this object was made.
    """

    def __init__(
        self, path: Path | None = None, *, clock: Callable[[], float] = time.monotonic, since: float | None = None
    ) -> None:
        self._clock = clock
        self._path = path
        self.entries = read_ledger(path) if path else []
        self._written = Totals()
        for entry in self.entries:
            self._written = self._written.plus(entry)
        self._pending: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._seconds: dict[str, float] = {}
        self._causes = ["idle"]
        self._since = clock() if since is None else since
        self._file: IO[bytes] | None = None
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = sum(len(line) + 1 for line in path.read_bytes().split(b"\n")[:-1]) if path.exists() else 0
            self._file = open(path, "ab")  # noqa: SIM115 (closed by close)
            self._file.truncate(whole)

    def now(self) -> float:
        """The ledger's clock, in seconds: for whoever must agree with it."""
        return self._clock()

    def _settle(self) -> None:
        now = self._clock()
        cause = self._causes[-1]
        self._seconds[cause] = self._seconds.get(cause, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def clock(self, cause: str) -> Iterator[None]:
        """Attribute the time of the block to `cause`; an inner block's time is the inner block's alone."""
        if cause not in CAUSES or cause == "sync_hidden":
            raise ValueError(f"'{cause}' is not a cause of spending time: {', '.join(CAUSES)}")
        self._settle()
        self._causes.append(cause)
        try:
            yield
        finally:
            self._settle()
            self._causes.pop()

    def charge(
        self,
        *,
        flops: int = 0,
        tokens: int = 0,
        discarded: int = 0,
        flops_discarded: int = 0,
        sent: int = 0,
        received: int = 0,
        sync_hidden: float = 0.0,
    ) -> None:
        """Add to what was spent since the last line. flops, tokens and bytes are counts; sync_hidden is in seconds."""
        for key, amount in zip(_COUNTED, (flops, tokens, discarded, flops_discarded, sent, received), strict=True):
            self._pending[key] += amount
        if sync_hidden:
            self._seconds["sync_hidden"] = self._seconds.get("sync_hidden", 0.0) + sync_hidden

    @property
    def totals(self) -> Totals:
        """All that was spent up to this moment."""
        self._settle()
        return self._written.plus({"seconds": self._seconds, **self._pending})

    def write(self, event: str, **more: Any) -> None:
        """Append a line with what was spent since the last one; `more` is kept beside it."""
        self._settle()
        line: dict[str, Any] = {"event": event, **more}
        line |= {key: amount for key, amount in self._pending.items() if amount}
        line["seconds"] = {cause: round(seconds, 6) for cause, seconds in self._seconds.items()}
        line["peak_memory"] = peak_memory()
        self._written = self._written.plus(line)
        line["at"] = round(self._written.wall_clock, 6)
        self._pending = dict.fromkeys(_COUNTED, 0)
        self._seconds = {}
        self.entries.append(line)
        if self._file:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def roll_back(self, retained: Totals) -> None:
        """Record that the model went back to a checkpoint taken at `retained`: what was trained since is discarded."""
        now = self.totals
        lost_flops, lost_tokens = now.flops - retained.flops, now.tokens - retained.tokens
        self.charge(flops=-lost_flops, flops_discarded=lost_flops, tokens=-lost_tokens, discarded=lost_tokens)
        self.write("resume", lost_tokens=lost_tokens)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


def totals_to_dict(totals: Totals) -> dict[str, Any]:
    return asdict(replace(totals, seconds=dict(totals.seconds)))


def totals_from_dict(plain: Mapping[str, Any]) -> Totals:
    return Totals(**plain)
