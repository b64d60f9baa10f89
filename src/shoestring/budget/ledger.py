"""The ledger: everything a run spends, written as it is spent, in one append-only file.

Each account says who spent it. A budget of FLOPs or tokens limits the account 'model' alone; the others (evaluations, samples,
teachers, calibration) are written beside it and bind through the seconds they take. Causes and accounts are open sets: an engine
declares its own with `cause` and `account`.

Time is attributed to exactly one cause at a moment: a clock opened inside another pauses the outer one, and time under
no clock is 'idle', so the causes add up to the wall clock. Only 'sync_hidden', exchange that went on while the model
computed, overlaps the others and stays out of that sum.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import psutil

from shoestring.budget.charge import FIELDS, NOTHING, Charge
from shoestring.budget.timeline import Timeline
from shoestring.errors import did_you_mean
from shoestring.json_files import damaged, is_number, read_lines

_causes: dict[str, str] = {}
_overlapping: set[str] = set()
_accounts: dict[str, str] = {}
_limited: set[str] = set()
_near: set[str] = set()


def cause(name: str, says: str, *, overlaps: bool = False) -> str:
    """Declare a cause of spending time. Returns its name.

    says: what it is, in words.
    overlaps: its seconds pass while others are counted, so they stay out of the wall clock.
    """
    _causes[name] = says
    if overlaps:
        _overlapping.add(name)
    return name


def account(name: str, says: str, *, limited: bool = False, near: bool = False) -> str:
    """Declare an account: whom FLOPs, tokens and bytes are charged to. Returns its name.

    says: what it pays for, in words.
    limited: its FLOPs count against a budget of FLOPs, as those of training do.
    near: its bytes go over a fast link, and are none that a run sends or receives in all.
    """
    _accounts[name] = says
    if near:
        _near.add(name)
    if limited:
        _limited.add(name)
    return name


def is_limited(account: str) -> bool:
    """Whether a budget of FLOPs limits what an account spends."""
    return account in _limited


COMPUTE = cause("compute", "steps of training")
DATA = cause("data", "reading and preparing text")
SYNC_EXPOSED = cause("sync_exposed", "waiting for an exchange")
SYNC_HIDDEN = cause("sync_hidden", "an exchange beside the steps", overlaps=True)
EVALUATE = cause("evaluate", "held-out evaluations and samples")
CHECKPOINT = cause("checkpoint", "writing checkpoints")
MEASURE = cause("measure", "timing which arithmetic pays, and planning by it")
START = cause("start", "looking at the machine, building the model, and a first step, where torch sets itself up")
COMPILE = cause("compile", "the compiler, and a first step that compiles; in ledgers of 0.1.0 the two above too")
RESTART = cause("restart", "noticing that a process was lost, ending the others, and starting all anew")
IDLE = cause("idle", "nothing of these")
STEPS = (COMPUTE, DATA, SYNC_EXPOSED)
"""Causes that steps of training are made of."""

MODEL = account("model", "training the model: what a budget of FLOPs or tokens limits", limited=True)
EVALUATION = account("evaluation", "held-out evaluations")
CALIBRATION = account("calibration", "text that an edit looks at to decide")
SELECTION = account(
    "selection", "scoring text or batches to choose what is trained on, within a budget of FLOPs", limited=True
)
SAMPLE = account("sample", "text drawn to be looked at")
ISLAND = account("island", "bytes among the processes of one worker that exchanges with others", near=True)


@dataclass(frozen=True)
class Totals:
    """Sums over a ledger.

    seconds: by cause.
    flops, tokens: of the account 'model', retained in the model; FLOPs of other accounts that a budget limits are among them.
    discarded, flops_discarded: tokens and FLOPs spent on work that was lost (a killed run repeats what followed its last
    checkpoint).
    sent, received: bytes.
    peak_memory: bytes, the largest resident set of the process (and of the accelerator, where there is one).
    accounts: what the other accounts spent, by name.

    Counts are whole numbers, so a resumed run's progress is exactly the uninterrupted one's.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    flops: int = 0
    tokens: int = 0
    discarded: int = 0
    flops_discarded: int = 0
    sent: int = 0
    received: int = 0
    peak_memory: int = 0
    accounts: Mapping[str, Charge] = field(default_factory=dict)

    @property
    def wall_clock(self) -> float:
        return sum(seconds for cause, seconds in self.seconds.items() if cause not in _overlapping)

    def plus(self, line: Mapping[str, Any]) -> "Totals":
        """These totals with one ledger line added."""
        seconds = dict(self.seconds)
        for cause, more in line.get("seconds", {}).items():
            seconds[cause] = seconds.get(cause, 0.0) + more
        accounts = dict(self.accounts)
        for name, counts in line.get("accounts", {}).items():
            more_counts = Charge(**{key: counts.get(key, 0) for key in FIELDS})
            accounts[name] = accounts.get(name, NOTHING) + more_counts
        added = {key: getattr(self, key) + line.get(key, 0) for key in _COUNTED}
        peak = max(self.peak_memory, line.get("peak_memory", 0))
        return Totals(seconds=seconds, peak_memory=peak, accounts=accounts, **added)


_COUNTED = ("flops", "tokens", "discarded", "flops_discarded", "sent", "received")
"""What stands in a line by itself: of the account 'model', as ledgers had it before there were others."""
_NUMBERS = frozenset({*_COUNTED, "peak_memory", "at"})


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger; a torn last line (the process died while writing it) is left out.

    Raises: ShoestringError when any other line is damaged.
    """
    rows = read_lines(path, _NUMBERS, unfinished=False)
    for number, row in rows:
        seconds = row.get("seconds", {})
        if not isinstance(seconds, dict) or any(row.get(key, 0) is None for key in _NUMBERS):
            raise damaged(path, number, "not a line of a ledger")
        if not all(is_number(spent) and math.isfinite(spent) for spent in seconds.values()):
            raise damaged(path, number, "'seconds' is not an amount for each cause")
        for key in _NUMBERS & row.keys():
            if not math.isfinite(row[key]):
                raise damaged(path, number, f"'{key}' is not a finite number")
    return [row for _, row in rows]


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

    timeline: is told of every change of cause, and of the phase within one; None: nobody is.
    """

    timeline: Timeline | None = None

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
        self._others: dict[str, Charge] = {}
        self._seconds: dict[str, float] = {}
        self._causes = ["idle"]
        self._phases = ["idle"]
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
        self.passed(self._causes[-1])

    @contextmanager
    def clock(self, cause: str, phase: str = "") -> Iterator[None]:
        """Attribute the time of the block to `cause`; an inner block's time is the inner block's alone.

        phase: what the timeline calls it; '': the cause's own.
        """
        if cause not in _causes or cause in _overlapping:
            raise ValueError(f"'{cause}' is not a cause of spending time: {did_you_mean(cause, _causes)}")
        self._settle()
        self._causes.append(cause)
        self._phases.append(phase or cause)
        self._tell()
        try:
            yield
        finally:
            self._settle()
            self._causes.pop()
            self._phases.pop()
            self._tell()

    def _tell(self) -> None:
        if self.timeline is not None:
            self.timeline.switch(self._phases[-1], self._since)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a collective: attribute it to the exchange where steps, or nothing, are on the clock. One that is a part of an
        evaluation, a checkpoint or the start is theirs."""
        if self._causes[-1] not in (COMPUTE, IDLE):
            yield
            return
        with self.clock(SYNC_EXPOSED, "communication"):
            yield

    def passed(self, cause: str) -> None:
        """Attribute to `cause` what has passed since time was last attributed."""
        now = self._clock()
        self._seconds[cause] = self._seconds.get(cause, 0.0) + now - self._since
        self._since = now

    def charge(self, charge: Charge, account: str = MODEL) -> None:
        """Add to what `account` has spent since the last line. Raises: ValueError for an account that nobody declared."""
        if account not in _accounts:
            raise ValueError(f"'{account}' is not an account: {did_you_mean(account, _accounts)}")
        if account != MODEL:
            self._others[account] = self._others.get(account, NOTHING) + charge
            # bytes on a link are those of the run, whoever sent them, if it is the slow one
            far = account not in _near
            charge = Charge(
                flops=charge.flops if account in _limited else 0,
                sent=charge.sent if far else 0,
                received=charge.received if far else 0,
            )
        for key in ("flops", "tokens", "sent", "received"):
            self._pending[key] += getattr(charge, key)

    def charge_all(self, spent: Mapping[str, Charge]) -> None:
        """Add what each account spent."""
        for name, amount in spent.items():
            self.charge(amount, name)

    def overlap(self, cause: str, seconds: float) -> None:
        """Add seconds of a cause that passed while others were counted."""
        self._seconds[cause] = self._seconds.get(cause, 0.0) + seconds

    def discard(self, tokens: int, flops: int) -> None:
        """Move what the account 'model' spent on work that is lost to what was discarded."""
        for key, amount in {"tokens": -tokens, "discarded": tokens, "flops": -flops, "flops_discarded": flops}.items():
            self._pending[key] += amount

    @property
    def totals(self) -> Totals:
        """All that was spent up to this moment."""
        self._settle()
        return self._written.plus({"seconds": self._seconds, **self._pending, "accounts": self._other_accounts()})

    def _other_accounts(self) -> dict[str, dict[str, int]]:
        return {name: charge.as_dict() for name, charge in self._others.items() if charge != NOTHING}

    def write(self, event: str, **more: Any) -> None:
        """Append a line with what was spent since the last one; `more` is kept beside it."""
        self._settle()
        line: dict[str, Any] = {"event": event, **more}
        line |= {key: amount for key, amount in self._pending.items() if amount}
        if others := self._other_accounts():
            line["accounts"] = others
        line["seconds"] = {cause: round(seconds, 6) for cause, seconds in self._seconds.items()}
        line["peak_memory"] = peak_memory()
        self._written = self._written.plus(line)
        line["at"] = round(self._written.wall_clock, 6)
        self._pending = dict.fromkeys(_COUNTED, 0)
        self._others = {}
        self._seconds = {}
        self.entries.append(line)
        if self._file:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def roll_back(self, retained: Totals) -> None:
        """Record that the model went back to a checkpoint taken at `retained`: what was trained since is discarded."""
        now, before = self.totals, self._written.seconds
        lost_flops, lost_tokens = now.flops - retained.flops, now.tokens - retained.tokens
        self.discard(lost_tokens, lost_flops)
        # of steps that earlier processes wrote down: what this one has taken so far is its start
        lost = {cause: before.get(cause, 0.0) - retained.seconds.get(cause, 0.0) for cause in STEPS}
        lost = {cause: round(seconds, 6) for cause, seconds in lost.items() if seconds > 0}
        self.write("resume", lost_tokens=lost_tokens, lost_seconds=lost)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


def totals_to_dict(totals: Totals) -> dict[str, Any]:
    return asdict(replace(totals, seconds=dict(totals.seconds), accounts=dict(totals.accounts)))


def totals_from_dict(plain: Mapping[str, Any]) -> Totals:
    accounts = {name: Charge(**counts) for name, counts in plain.get("accounts", {}).items()}
    return Totals(**{**plain, "accounts": accounts})
