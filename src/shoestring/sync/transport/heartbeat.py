"""Heartbeats: every worker shows the others that it runs, so that a frozen one is noticed long before an exchange times out."""

import logging
import threading
import time

import torch.distributed as dist

from shoestring.errors import first_line
from shoestring.sync.transport.base import PeerLost

TIMEOUT = 30.0
"""Seconds without a heartbeat after which a worker counts as frozen, unless the caller says otherwise."""

_LONGEST_INTERVAL = 5.0
_BEATS_PER_TIMEOUT = 5
log = logging.getLogger(__name__)


class Heartbeat:
    """Counts up this worker's heartbeat in a store and reads those of the others, in a thread of its own.

    A busy worker keeps beating, whatever it computes. A worker that was stopped (SIGSTOP) does not, nor does one whose
    machine is out of reach. The first time that one is missed, a warning is logged at once; `check` then raises.
    Time in which this process itself was stopped does not count against the others.

    store: a connection that nothing else uses, so that no other request can hold it up.
    rank: this worker.
    size: how many workers there are. Each must have made its `Heartbeat` before any calls `start`.
    timeout: seconds without a heartbeat until a worker counts as frozen.
    holder: the rank of the worker whose process holds the store; None where another process does.
    """

    def __init__(self, store: dist.Store, *, rank: int, size: int, timeout: float, holder: int | None = None) -> None:
        self.timeout = timeout
        self.interval = min(timeout / _BEATS_PER_TIMEOUT, _LONGEST_INTERVAL)
        self._store = dist.PrefixStore("shoestring/heartbeat", store)
        self._rank, self._holder = rank, None if holder == rank else holder
        self._others = [other for other in range(size) if other != rank]
        self._counts = dict.fromkeys(self._others, "")
        self._silence = dict.fromkeys(self._others, 0.0)
        self._looks, self._looks_checked = 0, -1
        self._checked, self._without_look = time.monotonic(), 0.0
        self._frozen: int | None = None
        self._closed = threading.Event()
        self._broken = False
        self._store.add(str(rank), 1)

    def start(self) -> None:
        """Begin to beat, and to look at the others."""
        threading.Thread(target=self._run, name="shoestring-heartbeat", daemon=True).start()

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
        """Stop beating."""
        self._closed.set()

    def _reason(self) -> str:
        return f"no heartbeat for {self.timeout:g} s: its process is frozen, or its machine is out of reach"

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(self.interval):
            try:
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

    def _look(self, counts: dict[int, str], passed: float) -> None:
        self._looks += 1
        for rank, count in counts.items():
            self._silence[rank] = self._silence[rank] + passed if count == self._counts[rank] else 0.0
            if self._silence[rank] >= self.timeout and self._frozen is None:
                self._frozen = rank
                log.warning("worker %d is lost: %s", rank, self._reason())
        self._counts = counts
