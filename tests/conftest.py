"""Shared by all tests: one thread of torch, a cache of their own, examples that are the same each time, time limits.

A test that starts processes has a longer time limit than others, and is begun before them: so the longest do not come last.
Those are the tests of a module that has something of `STARTERS` in its names; others are marked `processes`.
"""

import functools
import gc
import os
import shlex
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

# before torch is loaded: beside other workers, threads that spin while they wait take the cores from those that work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import psutil
import pytest

from tests.examples import examples
from tests.warm_start import warm_server

if TYPE_CHECKING:
    from shoestring.budget.machine import Machine

PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))
"""How many times slower than on two free cores a test may be: TEST_PATIENCE=5 make test."""
LIMIT, PROCESSES_LIMIT = 100 * PATIENCE, 240 * PATIENCE
"""Seconds that a test may take, and one that starts processes."""
WORKER_MEMORY = 3 << 30
"""Bytes that a worker of pytest-xdist and what it starts may need."""

STARTERS = {"subprocess", "multiprocessing", "torch.multiprocessing", "tests.fuzz.explore", "churning", "toy_run"}
"""Modules that start processes, or whose functions and classes do."""
COMMANDS = {"start", "start_fresh", "shoestring"}
"""Functions of `tests.train.command` that do."""

STEADY: dict[str, Any] = {
    "max_examples": examples(100),
    "deadline": None,  # nor is a busy machine a failure
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
    "print_blob": True,
}
hypothesis.settings.register_profile("suite", derandomize=True, **STEADY)
hypothesis.settings.register_profile("random", **STEADY)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "suite")
"""`suite`: the same examples each time. `random`: others each time, of the property tests alone (`make properties`)."""
hypothesis.settings.load_profile(PROFILE)


@pytest.hookimpl(optionalhook=True)  # as `-p no:xdist` has no such hook
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: three for two cores that this process may use, as tests often wait for processes, and as far as the
    memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores + cores // 2, psutil.virtual_memory().total // WORKER_MEMORY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """The workers are forked from a process that has imported everything once."""
    if sys.platform == "linux":
        for spec in specs:
            if spec.popen and not spec.python:
                spec.python = shlex.join(warm_server(everything=True).gate("tests"))


@functools.cache
def starts_processes(module: ModuleType | None) -> bool:
    """Whether a module of tests imports what starts processes."""
    for value in vars(module).values() if module else ():
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if home in STARTERS or (home == "tests.train.command" and getattr(value, "__name__", "") in COMMANDS):
            return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """No search for garbage while all tests are gathered, nor later among what was gathered: it lives as long as the process."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # a thread ends the whole worker, which pytest-xdist replaces: a signal does not reach a wait within a C library
    method = "thread" if "PYTEST_XDIST_WORKER" in os.environ else "signal"
    for item in items:
        if starts_processes(getattr(item, "module", None)) and item.get_closest_marker("processes") is None:
            item.add_marker("processes")
        if item.get_closest_marker("timeout") is None:
            processes = item.get_closest_marker("processes") is not None
            limit = pytest.mark.timeout(PROCESSES_LIMIT, method=method) if processes else pytest.mark.timeout(LIMIT)
            item.add_marker(limit)
    if PROFILE == "random":
        items[:] = [item for item in items if getattr(getattr(item, "obj", None), "is_hypothesis_test", False)]
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


def once_each(look: "Callable[[Machine], bool]") -> "Callable[[Machine], bool]":
    """A look that is taken once at each machine."""
    seen: dict[str, bool] = {}

    def found(known: "Machine") -> bool:
        if repr(known) not in seen:
            seen[repr(known)] = look(known)
        return seen[repr(known)]

    return found


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """And one look at the speed of this machine, not one a run: it is a third of the time of a tiny run."""
    # here, not above: the process that hands out the tests runs none, and has no need of them
    import torch

    from shoestring.budget import machine
    from shoestring.cli import shrink, train, tune
    from tests import warm_workers

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOESTRING_CACHE", str(folder))
        patch.setattr(machine, "_too_low", once_each(machine._too_low))
        # nor a page a run, which is more than half of the time of a tiny one: the fixture `pages` has them drawn
        for command in (shrink, train, tune):
            patch.setattr(command, "write_report", lambda runs: runs[0] / "report.html")
        # what a killed process wrote is there without it: waiting for a disk tells nothing here, and takes most of a short run
        patch.setattr(os, "fsync", lambda handle: None)
        # where torch keeps a seed for accelerators that it has not begun to use, it keeps the whole stack with each, deep in pytest
        # most of a millisecond, and only to say later where a call failed
        for waiting in (torch.cuda, torch.mtia, torch.xpu):
            patch.setattr(waiting, "traceback", SimpleNamespace(format_stack=list), raising=False)
        if sys.platform == "linux":
            warm_workers.install_in_tests()
        yield folder


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends in this process draws its page, as a user's does."""
    from shoestring.cli import shrink, train, tune
    from shoestring.report.page import write_report

    for command in (shrink, train, tune):
        monkeypatch.setattr(command, "write_report", write_report)
    monkeypatch.setenv("TESTS_PAGES", "yes")  # and one that is forked


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the package says through `logging` while a test goes on."""
    from shoestring.log_lines import held_back

    with held_back("shoestring") as lines:
        yield lines


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A test that changes torch's threads leaves the next one its own."""
    import torch

    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a hundred short text files with structure enough for a loss to fall."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(100):
        lines = [f"line {place} of text {number}: {'abc' * (1 + (number + place) % 5)}\n" for place in range(20)]
        (folder / f"{number:03}.txt").write_text("".join(lines))
    return folder
