"""The workers of a run as processes of this machine: started together, ended together."""

import contextlib
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil
import torch.distributed as dist

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.transport.frame import TOKEN, new_token
from shoestring.sync.transport.heartbeat import last_note, place_of, reported_lost

log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds between asking the other workers to end and ending them."""

_SHOWN_LINES = 12

_SETTLE = 0.5
"""Seconds to wait for the worker that a signal has ended, where another one says that it was left."""

# Run in a worker's process before the worker's program. PR_SET_PDEATHSIG (1) has the kernel kill the worker when the thread
# that started it ends, by whatever means, also where the worker computes or is frozen; it survives exec. A hook between
# fork and exec could do it too, but is not safe in a process with threads.
_LEAD_IN = """
import ctypes, os, signal, sys
parent, cores, *command = sys.argv[1:]
if sys.platform == "linux":
    if ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit("the worker cannot be tied to the process that starts it")
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
if os.getppid() != int(parent):
    sys.exit("the process that starts the workers has ended")
os.execvp(command[0], command)
"""


class WorkerFailed(ShoestringError):
    """A worker ended before its work was done, or was frozen.

    rank: which.
    exit_status: the worker's own, 1 where a signal ended it.
    note: what it last told of itself (`heartbeat.last_note`).
    """

    def __init__(
        self, rank: int, status: int, said: str, *, frozen: bool = False, note: Mapping[str, Any] | None = None
    ) -> None:
        self.rank, self.frozen, self.note = rank, frozen, dict(note or {})
        self.exit_status = status if status > 0 else 1
        how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        how = "was frozen" if frozen else how
        where = place_of(self.note)
        where = f" ({where})" if where and (frozen or status < 0) else ""
        super().__init__(f"worker {rank} {how}{where}{f': {said}' if said else ''}")


def available_cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


def share_of_cores(rank: int, workers: int, cores: Sequence[int]) -> list[int]:
    """The cores of a worker: near-equal runs of neighbours; one core each, in turn, where there are fewer than workers."""
    count = len(cores)
    if count < workers:
        return [cores[rank % count]]
    return list(cores[rank * count // workers : (rank + 1) * count // workers])


def open_store() -> dist.TCPStore:
    """The store in which workers of this machine meet, on a free port of the loopback interface alone."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def tied(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """The command such that, on Linux, its process has these cores alone and dies with the thread that starts it."""
    return [sys.executable, "-I", "-S", "-c", _LEAD_IN, str(os.getpid()), ",".join(map(str, cores)), *command]


def launch(
    command: Sequence[str],
    workers: int,
    *,
    outputs: Path,
    cores: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> "StartedWorkers":
    """Start `workers` processes of a command (`[sys.executable, "-m", "shoestring", ...]`) on this machine.

    Each finds the variables of torchrun (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT). The
    rendezvous store lives in this process. The run's token is in the environment: a new one, unless there is one already.
    A worker leads a session of its own: a Ctrl-C at the terminal reaches it once, through `StartedWorkers.wait`. On Linux
    workers die with the thread that calls this: it must live as long as they should.

    command: its words.
    workers: how many.
    outputs: a folder: what worker r writes goes to worker-r.txt there; worker 0 writes to this process's output and errors.
    cores: that the workers share, near-equally (their affinity, on Linux, and OMP_NUM_THREADS); None: all of this process.
    environment: laid over this process's own.

    Raises: UsageError where there is nothing to start; OSError where the system cannot.
    """
    if workers < 1 or not command:
        raise UsageError(f"{workers} workers of '{' '.join(command)}': at least one worker of some command is needed")
    if shutil.which(command[0]) is None:
        raise UsageError(f"no program '{command[0]}' to start workers with")
    cores = available_cores() if cores is None else cores
    if not cores:
        raise UsageError("no core is left for the workers")
    team = StartedWorkers(open_store(), outputs)
    shared = {TOKEN: os.environ.get(TOKEN) or new_token(), **(environment or {})}
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        for rank in range(workers):
            mine = share_of_cores(rank, workers, cores)
            own = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": workers,
                "LOCAL_WORLD_SIZE": workers,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": team.store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True,
                "OMP_NUM_THREADS": len(mine),
            }
            words = {name: str(value) for name, value in own.items()}
            team.start(command, {**os.environ, **words, **shared}, mine)
    except BaseException:
        team.end()
        raise
    return team


class StartedWorkers:
    """Workers that were started together. `with launch(...) as team: status = team.wait()` leaves none behind."""

    def __init__(self, store: dist.TCPStore, outputs: Path) -> None:
        self.store, self.outputs = store, outputs
        self.workers: list[subprocess.Popen[bytes]] = []
        self._ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()  # (rank, status), in the order of ending
        self._asked: int | None = None
        self._watchers: list[threading.Thread] = []

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self.workers]

    def output_of(self, rank: int) -> Path:
        return self.outputs / f"worker-{rank}.txt"

    def start(self, command: Sequence[str], environment: Mapping[str, str], cores: Sequence[int]) -> None:
        """Start the next worker; `launch` calls this."""
        rank = len(self.workers)
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(open(self.output_of(rank), "wb")) if rank else None
            worker = subprocess.Popen(
                tied(command, cores),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT if out else None,
                start_new_session=True,
            )
        self.workers.append(worker)
        watcher = threading.Thread(target=lambda: self._ended.put((rank, worker.wait())), daemon=True)
        self._watchers.append(watcher)
        watcher.start()

    def wait(self) -> int:
        """Wait until all workers have ended. Returns 0, or 128 + n where they ended as asked by signal n.

        Each SIGINT and SIGTERM that comes meanwhile is handed on to every worker, once. When one fails the others are asked
        to end (SIGTERM), and are ended after `GRACE` seconds; the last lines of its output are logged.
        Raises: WorkerFailed, of the first that failed.
        """
        stopped = False
        with self._forwarding():
            for _ in self.workers:
                rank, status = self._ended.get()
                as_asked = self._asked is not None and status in (-self._asked, 128 + self._asked)
                if status and not as_asked:
                    raise self._failed(rank, status)
                stopped |= as_asked
        return 128 + (self._asked or 0) if stopped else 0

    def _failed(self, rank: int, status: int) -> WorkerFailed:
        """End the others; what is wrong. Those that are left by a lost one may end before it is known how that one ended."""
        frozen = reported_lost(self.store)
        end = time.monotonic() + _SETTLE
        while frozen is None and status > 0 and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                other, its = self._ended.get(timeout=0.05)
                rank, status = (other, its) if its < 0 else (rank, status)
        lost = rank if frozen is None else frozen
        note = last_note(self.store, lost)
        self.end()
        if frozen is not None:
            return WorkerFailed(frozen, 1, "", frozen=True, note=note)
        return WorkerFailed(rank, status, self._last_words(rank), note=note)

    def end(self) -> None:
        """Ask the workers that are left to end, and end those that have not within `GRACE` seconds, children and all.

        One that is stopped cannot hear, and is ended at once.
        """
        self._send(signal.SIGTERM)
        for worker in self.workers:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if worker.returncode is None and psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED:
                    os.killpg(worker.pid, signal.SIGKILL)
        end = time.monotonic() + GRACE
        for watcher in self._watchers:
            watcher.join(max(end - time.monotonic(), 0))
        for worker, watcher in zip(self.workers, self._watchers, strict=True):
            if watcher.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)
            watcher.join()

    def __enter__(self) -> "StartedWorkers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _send(self, number: int) -> None:
        for worker in self.workers:
            if worker.returncode is None:
                worker.send_signal(number)

    @contextlib.contextmanager
    def _forwarding(self) -> Iterator[None]:
        def hand_on(number: int, frame: FrameType | None) -> None:
            self._asked = number
            self._send(number)

        if threading.current_thread() is not threading.main_thread():
            yield  # Python allows no handlers here: whoever has the main thread calls `end`
            return
        before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _last_words(self, rank: int) -> str:
        """The last line that a worker wrote; the ones before it are logged."""
        if rank == 0:
            return ""  # all it wrote has been seen
        with open(self.output_of(rank), "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        for line in lines[-_SHOWN_LINES:-1]:
            log.warning(f"worker {rank} | {line}")
        return lines[-1].strip().removeprefix("shoestring: ") if lines else ""
