"""The workers of this machine in a run whose workers come and go: started, watched, started again, ended."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from shoestring.errors import ShoestringError
from shoestring.launch.crew import STARTED
from shoestring.launch.host import Host
from shoestring.launch.processes import GRACE, available_cores, share_of_cores, tied
from shoestring.sync.transport.frame import TOKEN

log = logging.getLogger(__name__)

LOOK = 0.2
"""Seconds between two looks at the workers."""

FAILURES = 3
"""Times that a worker may fail by itself before it is not started again."""


class Fleet:
    """The workers of this machine. On Linux they die with the thread that starts them.

    host: of the run.
    names: of the workers: each keeps its part of the run in RUN/workers/NAME, and what it writes in output.txt there.
    restart: start a worker again that has died.
    since: the monotonic clock when the run was asked for.
    """

    def __init__(self, host: Host, names: Sequence[str], *, restart: bool, since: float) -> None:
        self.host, self.names, self.restart, self.since = host, list(names), restart, since
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.failures: dict[str, int] = dict.fromkeys(names, 0)
        self.asked: int | None = None

    def folder(self, name: str) -> Path:
        return self.host.folder.path / "workers" / name

    def start(self, name: str, *, again: bool = False, through: str = "") -> subprocess.Popen[bytes]:
        """Start a worker.

        again: it comes to a run that goes on.
        through: the address it is given, '' for the listener's own.
        """
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        place = self.names.index(name) if name in self.names else 0
        cores = share_of_cores(place, len(self.names), available_cores())
        asked = {
            "recipe": str(self.host.folder.path / "config.toml"),
            "where": through or self.host.address,
            "out": str(folder),
            "name": name,
            "companions": [] if again else self.names,
        }
        command = [sys.executable, "-m", "shoestring.launch", json.dumps({"join": asked})]
        environment = {**os.environ, TOKEN: self.host.token, "OMP_NUM_THREADS": str(len(cores))}
        environment.pop(STARTED, None)
        if not again:
            environment[STARTED] = str(self.since)
        with open(folder / "output.txt", "ab") as out:
            self.running[name] = subprocess.Popen(
                tied(command, cores),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.running[name]

    def last_words(self, name: str) -> str:
        """The last line that a worker wrote."""
        lines = (self.folder(name) / "output.txt").read_text(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return said[-1].removeprefix("shoestring: ") if said else ""

    def watch(self, tick: Callable[[], None]) -> int:
        """Start all and wait for the run's end. Returns 0, or 128 + n where it was stopped by signal n.

        tick: called often.

        Raises: ShoestringError where all workers of this machine have ended and the run has not.
        """
        with self._forwarding():
            for name in self.names:
                self.start(name)
            while self.running:
                time.sleep(LOOK)
                tick()
                for name in [name for name, process in self.running.items() if process.poll() is not None]:
                    self._ended(name, self.running.pop(name).returncode)
                if self.running and self.host.run_status.finished_by():
                    self._part()
        tick()
        if self.host.run_status.finished_by():
            return 0
        if self.asked is not None:
            return 128 + self.asked
        raise ShoestringError(
            f"all workers of this machine have ended before the run did; go on with: shoestring train --resume "
            f"{self.host.folder.path}"
        )

    def _ended(self, name: str, status: int) -> None:
        if status == 0 or (self.asked is not None and status in (-self.asked, 128 + self.asked)):
            return
        how = f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"
        said = f": {self.last_words(name)}" if status > 0 else ""
        self.failures[name] += status > 0
        again = self.restart and self.asked is None and self.failures[name] < FAILURES and status != 2
        log.warning(
            f"worker {name} {how}{said}" + ("; it is started again" if again else "; the run goes on without it")
        )
        if again:
            self.start(name, again=True)

    def _part(self) -> None:
        """The run is over: let those who are left end, and end those who cannot."""
        end = time.monotonic() + GRACE
        while any(process.poll() is None for process in self.running.values()) and time.monotonic() < end:
            time.sleep(LOOK)
        self.end()

    def end(self) -> None:
        """End all workers at once, children and all."""
        for process in self.running.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.running.clear()

    @contextlib.contextmanager
    def _forwarding(self) -> Iterator[None]:
        def hand_on(number: int, frame: FrameType | None) -> None:
            if self.asked is not None:
                raise KeyboardInterrupt  # asked twice: do not wait for the round
            self.asked = number
            for process in self.running.values():
                if process.poll() is None:
                    process.send_signal(number)

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.end()
