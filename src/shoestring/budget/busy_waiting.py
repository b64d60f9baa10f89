"""How OpenMP threads wait for each other: they spin while the cores are theirs alone, and sleep while others need them.

Between two pieces of work libgomp's threads spin for some milliseconds before they sleep. On a quiet machine that is fast.
Beside another busy process it is ruinous: a thread spins on a core that the thread it waits for needs, and a step takes many
times as long (`bench/busy.py`). The choice between the two is read from the environment (OMP_WAIT_POLICY, GOMP_SPINCOUNT)
when torch is loaded, but what else the machine does changes while a run lasts.

libgomp spins 100 times only, in place of 300,000, "if there are more OpenMP threads than available CPUs" (its manual, under
GOMP_SPINCOUNT). So `Watch` looks at the load that other processes put on this process's cores, and while there is too much of
it keeps a spare team of threads, which sleep. Nothing else changes: the number of threads that compute, and so every bit of
what they compute, is the same. A user's own OMP_WAIT_POLICY or GOMP_SPINCOUNT stands, and nothing is watched then.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What a user sets to choose how threads wait; either of them stands."""

EVERY = 0.5
"""Seconds between two looks at the load."""

CROWDED, FREE = 0.25, 0.1
"""Cores' worth of other processes' work, beyond what is left over, from which on threads sleep, and below which they spin."""

PATIENCE = 3
"""Looks in a row that must find the cores free before threads spin again."""

PIECE = 1 << 15
"""Numbers that torch gives to one thread at least (at::internal::GRAIN_SIZE): a team is made by work for all its threads."""


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class LoadReading:
    """at: the clock, in seconds. busy: seconds that this process's cores have worked for anybody. own: of them for this
    process."""

    at: float
    busy: float
    own: float


def read_load() -> LoadReading:
    """The counters of the machine and of this process, as they stand."""
    every = psutil.cpu_times(percpu=True)
    mine = [every[core] for core in cores() if core < len(every)]
    # iowait and guest are left out: the one is no work, the other is in user already
    busy = sum(
        sum(getattr(t, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal")) for t in mine
    )
    own = psutil.Process().cpu_times()
    return LoadReading(time.monotonic(), busy, own.user + own.system)


def others(before: LoadReading, now: LoadReading) -> float:
    """Cores' worth of work that other processes did on this process's cores between two readings."""
    seconds = max(now.at - before.at, 1e-6)
    return max(0.0, (now.busy - before.busy - (now.own - before.own)) / seconds)


def chosen() -> str:
    """What the user chose in the environment, or ''."""
    return " ".join(f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name))


def threads() -> int:
    """Threads that torch computes with; 0 while it is not loaded."""
    torch: Any = sys.modules.get("torch")
    return int(torch.get_num_threads()) if hasattr(torch, "get_num_threads") else 0


def can_change() -> bool:
    """Whether the threads' way of waiting can be changed while they run: torch computes with libgomp."""
    if sys.platform != "linux":
        return False
    try:
        with open("/proc/self/maps") as file:
            return any("libgomp" in line for line in file)
    except OSError:
        return False


class SpareTeams:
    """Teams of OpenMP threads that sleep: while there are any, there are more threads than cores."""

    def __init__(self) -> None:
        self._release = threading.Event()
        self._owners: list[threading.Thread] = []

    @property
    def held(self) -> bool:
        return bool(self._owners)

    def hold(self, size: int, cores: int) -> None:
        """Make teams of `size` threads until, with the team that computes, they outnumber `cores`."""
        self._release.clear()
        while 1 + (len(self._owners) + 1) * (size - 1) <= cores:
            self._add(size)

    def _add(self, size: int) -> None:
        made = threading.Event()

        def own() -> None:
            import torch

            torch.zeros(2 * size * PIECE).add_(1)  # work for every thread of a team, which is this thread's own
            made.set()
            self._release.wait()

        owner = threading.Thread(target=own, name="spare OpenMP team", daemon=True)
        owner.start()
        made.wait(10)
        self._owners.append(owner)

    def let_go(self) -> None:
        """End them: a team ends with the thread that made it."""
        self._release.set()
        for owner in self._owners:
            owner.join(10)
        self._owners.clear()


class Watch:
    """Decides, look by look, whether threads are to spin or to sleep. A thread calls `look` every `EVERY` seconds.

    load: reads the counters. size: threads that compute, 0 while it is not known. teams: makes them sleep while held.
    others: cores' worth of other processes' work at the last look. crowded_seconds: how long threads have slept so far.
    """

    def __init__(
        self,
        *,
        load: Callable[[], LoadReading] = read_load,
        size: Callable[[], int] = threads,
        cores: Callable[[], Sequence[int]] = cores,
        teams: SpareTeams | None = None,
    ) -> None:
        self._load, self._size, self._cores = load, size, cores
        self.teams = teams or SpareTeams()
        self.others, self.crowded_seconds = 0.0, 0.0
        self._free = 0
        self._before = load()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch on the load", daemon=True)

    @property
    def crowded(self) -> bool:
        """Whether other processes need the cores, so that threads sleep while they wait."""
        return self.teams.held

    def look(self) -> None:
        """One look: whether what computes and what others do fit on the cores."""
        now = self._load()
        if self.crowded:
            self.crowded_seconds += now.at - self._before.at
        self.others, self._before = others(self._before, now), now
        size, count = self._size(), len(self._cores())
        beyond = self.others - max(count - size, 0)
        if size < 2:  # a single thread waits for nobody
            self.teams.let_go()
            return
        self._free = self._free + 1 if beyond < FREE else 0
        if beyond > CROWDED:
            self.teams.hold(size, count)  # again too: the number of threads may have changed
        elif self.crowded and self._free >= PATIENCE:
            self.teams.let_go()

    def _run(self) -> None:
        wait = 0.1  # the first look soon: what is loaded meanwhile takes longer
        while not self._end.wait(wait):
            self.look()
            wait = EVERY

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        self.teams.let_go()


_watch: Watch | None = None


def begin() -> None:
    """Watch the load from here on, unless the user chose how threads wait or it is watched already."""
    global _watch
    if _watch is None and not chosen() and sys.platform == "linux":
        _watch = Watch()
        _watch.start()


def end() -> None:
    """Watch it no more: threads wait as the OpenMP library has it."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def crowded() -> bool:
    """Whether other processes need this process's cores at this moment, as far as it is watched."""
    return _watch is not None and _watch.crowded


def crowded_seconds() -> float:
    """How long other processes have needed this process's cores so far, as far as it is watched."""
    return 0.0 if _watch is None else _watch.crowded_seconds


def policy() -> dict[str, Any]:
    """How threads wait here, as a run's environment.json keeps it."""
    if chosen():
        return {"policy": "as the user set it", "set": chosen()}
    if _watch is None:
        return {"policy": "the OpenMP library's own"}
    return {
        "policy": "spin, and sleep while other processes need the cores",
        "now": "sleep" if _watch.crowded else "spin",
        "others": round(_watch.others, 2),
    }


def describe(seconds: float = 0.5) -> list[str]:
    """Lines for people: how threads wait and what the machine does now, looked at for `seconds`."""
    before = read_load()
    time.sleep(seconds)
    busy = others(before, read_load())
    found = [f"others      {busy:.1f} of {len(cores())} cores are taken by other processes now"]
    if chosen():
        return [*found, f"waiting     threads wait as {chosen()} says"]
    if not can_change():
        return [
            *found,
            "waiting     threads wait as the OpenMP library has it: set OMP_WAIT_POLICY=PASSIVE beside other work",
        ]
    return [*found, "waiting     threads spin while the cores are free, and sleep while other processes need them"]
