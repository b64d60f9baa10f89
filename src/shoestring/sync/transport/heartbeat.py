"""Heartbeats: every worker shows the others that it runs, so that a frozen one is noticed long before an exchange times out."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist

from shoestring.errors import first_line, printable
from shoestring.sync.transport.base import PeerLost

TIMEOUT = 30.0
"""Seconds without a heartbeat after which a worker counts as frozen, unless the caller says otherwise."""

SILENT = 5.0
"""Seconds without a heartbeat after which it is told, before a worker counts as frozen."""

_LONGEST_INTERVAL = 1.0
_BEATS_PER_TIMEOUT = 5
_PREFIX = "shoestring/heartbeat"
_LOST = "lost"
_LEFT = "left"
_FAREWELL = 2.0
"""The most seconds that leaving waits for the store."""

log = logging.getLogger(__name__)


def place_of(note: dict[str, Any]) -> str:
    """What a worker last told of itself, in words: '' where it told nothing."""
    words = [str(note["host"])] if note.get("host") else []
    if note.get("phase"):
        step = note.get("step")
        at = f" of step {step}" if isinstance(step, int) and step >= 0 else ""
        words.append(f"last seen in '{note['phase']}'{at}")
    return printable(", ".join(words))[:200]


def last_note(store: dist.Store, rank: int) -> dict[str, Any]:
    """What worker `rank` last told of itself; nothing where it never did, or the store is out of reach."""
    try:
        store = dist.PrefixStore(_PREFIX, store)
        return _note(store.get(_key(rank))) if store.check([_key(rank)]) else {}
    except (dist.DistError, RuntimeError):
        return {}


def reported_lost(store: dist.Store) -> int | None:
    """The worker that another one has found frozen; None where none was."""
    try:
        store = dist.PrefixStore(_PREFIX, store)
        return int(store.get(_LOST)) if store.check([_LOST]) else None
    except (dist.DistError, RuntimeError, ValueError):
        return None


def _key(rank: int) -> str:
    return f"note {rank}"


def _note(value: bytes) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Heartbeat:
    """Counts up this worker's heartbeat in a store and reads those of the others, in a thread of its own.

    A busy worker keeps beating, whatever it computes. A worker that was stopped (SIGSTOP) does not, nor does one whose
    machine is out of reach. A warning is logged when one is silent for `SILENT` seconds, and when one is given up; `check` then
    raises. Time in which this process itself was stopped does not count against the others.

    store: a connection that nothing else uses, so that no other request can hold it up.
    rank: this worker.
    size: how many workers there are. Each must have made its `Heartbeat` before any calls `start`.
    timeout: seconds without a heartbeat until a worker counts as frozen.
    holder: the rank of the worker whose process holds the store; None where another process does.

    say: gives what the others, and who started the workers, may know of this one: JSON values, sent with each heartbeat.
    """

    say: Callable[[], dict[str, Any]] | None = None

    def __init__(self, store: dist.Store, *, rank: int, size: int, timeout: float, holder: int | None = None) -> None:
        self.timeout = timeout
        self.interval = min(timeout / _BEATS_PER_TIMEOUT, _LONGEST_INTERVAL)
        self._store = dist.PrefixStore(_PREFIX, store)
        self._rank, self._holder = rank, None if holder == rank else holder
        self._others = [other for other in range(size) if other != rank]
        self._counts = dict.fromkeys(self._others, "")
        self._silence = dict.fromkeys(self._others, 0.0)
        self._looks, self._looks_checked = 0, -1
        self._checked, self._without_look = time.monotonic(), 0.0
        self._silent_at = min(SILENT, timeout)
        self._frozen: int | None = None
        self._place = ""
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._broken = False
        self._store.set(_key(rank), "{}")
        self._store.add(str(rank), 1)

    def start(self) -> None:
        """Begin to beat, and to look at the others."""
        self._thread = threading.Thread(target=self._run, name="shoestring-heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises: PeerLost where a worker gave no heartbeat for `timeout` seconds."""
        now = time.monotonic()
        passed, self._checked = min(now - self._checked, self.interval), now
        if self._looks != self._looks_checked:
            self._looks_checked, self._without_look = self._looks, 0.0
        self._without_look += passed
        if self._frozen is not None:
            raise PeerLost(self._frozen, self._reason())
        if self._holder is not None and not self._broken and self._without_look > self.timeout:
            raise PeerLost(self._holder, self._reason())

    def close(self) -> None:
        """Stop beating, and tell the others that this worker leaves: its silence is none."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_FAREWELL)

    def notes(self, ranks: Iterable[int]) -> dict[int, dict[str, Any]]:
        """What workers last told of themselves, by rank. Raises: RuntimeError where the store is out of reach."""
        asked = [rank for rank in ranks if self._store.check([_key(rank)])]
        found = self._store.multi_get([_key(rank) for rank in asked]) if asked else []
        return {rank: _note(value) for rank, value in zip(asked, found, strict=True)}

    def _reason(self) -> str:
        return (
            f"no heartbeat for {self.timeout:g} s: its process is frozen, or its machine is out of reach{self._place}"
        )

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(self.interval):
            try:
                if self.say is not None:
                    self._store.set(_key(self._rank), json.dumps(self.say()))
                self._store.add(str(self._rank), 1)
                found = [each.decode() for each in self._store.multi_get([str(other) for other in self._others])]
            except (dist.DistError, RuntimeError) as error:
                if not self._closed.is_set():
                    log.warning("no heartbeats any more, a frozen worker is noticed late: %s", first_line(error))
                self._broken = True
                return
            now = time.monotonic()
            # a longer pause than this was this process's own, or the store's: nobody could have been heard in it
            passed, before = min(now - before, 2 * self.interval), now
            self._look(dict(zip(self._others, found, strict=True)), passed)
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._store.set(str(self._rank), _LEFT)

    def _look(self, counts: dict[int, str], passed: float) -> None:
        self._looks += 1
        for rank, count in counts.items():
            before = self._silence[rank]
            self._silence[rank] = silence = before + passed if count == self._counts[rank] and count != _LEFT else 0.0
            if before < self._silent_at <= silence < self.timeout:
                place = self._where(rank)
                log.warning(
                    "worker %d is silent for %.0f s%s: it is given up after %g s", rank, silence, place, self.timeout
                )
            if silence >= self.timeout and self._frozen is None:
                self._place = self._where(rank)
                with contextlib.suppress(RuntimeError):
                    self._store.set(_LOST, str(rank))  # told before anybody ends because of it
                self._frozen = rank
                log.warning("worker %d is lost: %s", rank, self._reason())
        self._counts = counts

    def _where(self, rank: int) -> str:
        """' (HOST, last seen in ...)', or '' where it is not known."""
        try:
            found = place_of(self.notes([rank]).get(rank, {}))
        except RuntimeError:
            return ""
        return f" ({found})" if found else ""
