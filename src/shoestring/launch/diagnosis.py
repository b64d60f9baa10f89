"""Watching a run of several processes: what each does when, which of them holds the others up, and which is frozen.

A thread of each process writes its timeline to the run's folder now and then, and looks whether the others' hearts beat. That of
rank 0 also compares their work. Nothing of it waits for another process, or is waited for by the steps.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from shoestring import atomic
from shoestring.budget.ledger import Ledger
from shoestring.budget.stragglers import StragglerWatch
from shoestring.budget.timeline import Timeline
from shoestring.errors import printable
from shoestring.launch.clock_offset import measured
from shoestring.parallel.waiting import around_collectives
from shoestring.sync.transport.base import PeerLost, Transport
from shoestring.sync.transport.heartbeat import Heartbeat
from shoestring.train.run_folder import EVENTS, JsonLines, RunFolder

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks at the others."""
WRITTEN_EVERY = 10
"""Looks between two writings of the timeline."""
LINGER = 5.0
"""The most seconds that closing waits for the thread, which may be waiting for a store whose process is frozen."""
NAME = "timeline.jsonl"


def note_event(folder: RunFolder, event: str, **more: Any) -> None:
    """Add a line to what was noticed of a run's processes."""
    lines = JsonLines(folder.path / EVENTS)
    lines.append({"event": event, **more})
    lines.close()


class Diagnosis:
    """What a process notes of itself, and sees of the others. `start` and `close` begin and end its thread.

    heartbeat: None where there are no others.
    folder: of this process.
    size: how many processes there are.
    ends: whether this process ends where another one is frozen: it may be in a collective, which nothing else ends.
    """

    def __init__(
        self, timeline: Timeline, heartbeat: Heartbeat | None, folder: RunFolder, *, size: int, ends: bool
    ) -> None:
        self.timeline, self.heartbeat, self.folder, self.size, self.ends = timeline, heartbeat, folder, size, ends
        self._stragglers = StragglerWatch()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shoestring-diagnosis", daemon=True)

    def start(self) -> None:
        if self.heartbeat is not None:
            self.heartbeat.say = self.timeline.status
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(LINGER)
        self.write()

    def write(self) -> None:
        with suppress(OSError):  # a full disk ends no run for this
            atomic.write_text(self.folder.path / NAME, self.timeline.lines())

    def _run(self) -> None:
        looks = 0
        while not self._closed.wait(EVERY):
            try:
                if self.heartbeat is not None:
                    self.heartbeat.check()
                    if self.timeline.rank == 0:
                        self.compare(self.heartbeat)
            except PeerLost as error:
                self._lost(error)
                return
            except (RuntimeError, OSError) as error:
                log.warning("processes are not compared any more: %s", printable(str(error).partition("\n")[0][:200]))
                return
            looks += 1
            if looks % WRITTEN_EVERY == 1:
                self.write()

    def compare(self, heartbeat: Heartbeat) -> None:
        """Name the processes that hold the others up, once each. Raises: RuntimeError where the store is out of reach."""
        notes = {0: self.timeline.status(), **heartbeat.notes(range(1, self.size))}
        each = {rank: _medians(note) for rank, note in notes.items()}
        steps = [note.get("step") for note in notes.values()]
        reached = min((step for step in steps if isinstance(step, int)), default=-1)
        for found in self._stragglers.look(each, reached):
            host = printable(str(notes[found.rank].get("host", "")))[:100]
            log.warning(
                "worker %d (%s) holds the others up: its own work of a step takes %.0f %% longer than theirs, %.1f ms, most of "
                "it in '%s'",
                found.rank,
                host,
                100 * found.share,
                1000 * found.seconds,
                found.phase,
            )
            about = {"phase": found.phase, "share": round(found.share, 4), "seconds": round(found.seconds, 6)}
            note_event(self.folder, "straggler", rank=found.rank, host=host, step=reached, **about)

    def _lost(self, error: PeerLost) -> None:
        """Another process is frozen. gloo ends no wait for it before its own limit, of minutes: this process ends."""
        self.write()
        if not self.ends:
            return  # whoever waits for its message next is told
        sys.stdout.flush()
        print(f"shoestring: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _medians(note: dict[str, Any]) -> dict[str, float]:
    found = note.get("medians")
    if not isinstance(found, dict) or not all(isinstance(value, int | float) for value in found.values()):
        return {}
    return found


@contextmanager
def diagnosed(transport: Transport, folder: RunFolder, ledger: Ledger, *, ends: bool) -> Iterator[None]:
    """While open, a process of several is watched, and watches. All processes enter it together.

    folder: of this process; what is noticed of all is kept in that of rank 0.
    ledger: of this process; time in collectives is on it as waiting.
    ends: as for `Diagnosis`.
    """
    timeline = Timeline(transport.rank)
    timeline.offset, timeline.offset_error = measured(transport)
    heartbeat = getattr(transport, "heartbeat", None)
    watched = Diagnosis(timeline, heartbeat, folder, size=transport.size, ends=ends)
    ledger.timeline = timeline
    with ExitStack() as stack:
        stack.enter_context(around_collectives(ledger.waiting))
        watched.start()
        stack.callback(watched.close)
        try:
            yield
        finally:
            ledger.timeline = None
