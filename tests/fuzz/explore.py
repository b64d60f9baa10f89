"""Runs the targets: a process each, an equal share of the time, a watchdog beside it, a line of figures at the end."""

import gc
import importlib
import multiprocessing
import os
import pkgutil
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shoestring.errors import ShoestringError

Case = Callable[[random.Random], None]

LIMIT = 10.0
"""Seconds that one case may take, where its target says nothing else."""
PREPARATION = 120.0
"""Seconds that a target may take to prepare, the imports included."""
MEMORY = 4 << 30
"""Bytes of address space that a target may take beyond what it has when it is prepared."""
START = "spawn"
"""How a process begins: with nothing of this one's."""
PACKAGE = "tests.fuzz.targets"


@dataclass
class Figures:
    """What came of the cases of a target. bad: (seed of the case, what was wrong)."""

    name: str
    refused: int = 0
    accepted: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def cases(self) -> int:
        return self.refused + self.accepted + len(self.bad)

    def line(self) -> str:
        return (
            f"{self.name:20} cases {self.cases:6}  refused {self.refused:6}  accepted {self.accepted:6}  "
            f"bad {len(self.bad):3}  slowest case {self.slowest:5.2f} s  {self.seconds:6.1f} s"
        )


def names() -> list[str]:
    """The targets there are: the modules of `tests/fuzz/targets`."""
    package = importlib.import_module(PACKAGE)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def judge(case: Case, seed: int) -> tuple[str, str]:
    """(accepted, refused or bad; what was wrong) of one case."""
    try:
        case(random.Random(seed))
    except ShoestringError as error:
        text = str(error)
        if not text.strip() or any(not letter.isprintable() for letter in text):
            return "bad", f"a message that is not one printable line: {text[:300]!r}"
        return "refused", ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, RecursionError):
            return "bad", f"RecursionError: {error} in {_place(error)}"
        return "bad", "".join(traceback.format_exception(error)).rstrip()[-3000:]
    return "accepted", ""


def run(
    name: str, seconds: float, seed: int, *, only: int | None = None, most: int | None = None, package: str = PACKAGE
) -> Figures:
    """Cases of a target, with seeds that `seed` gives, for so many seconds.

    only: this case alone, by its seed. most: at most so many cases. A process that hangs, or dies, in a case makes that
    case bad, and another goes on.
    """
    figures, began = Figures(name), time.monotonic()
    while True:
        left = began + seconds - time.monotonic()
        wanted = None if most is None else most - figures.cases
        if (left <= 0 or wanted == 0) and (figures.cases or left < -PREPARATION):
            break
        finished = _one_process(figures, max(left, 0.1), f"{seed}-{figures.cases}", only, wanted, package)
        if finished or only is not None:
            break
    figures.seconds = time.monotonic() - began
    return figures


def main(targets: Sequence[str], minutes: float, seed: int, case: int | None) -> int:
    """Run targets and print a line a target. Returns the exit status: 1 where a case was bad."""
    print(f"seed {seed}: {len(targets)} targets, {minutes:g} minutes", flush=True)
    bad = 0
    for name in targets:
        figures = run(name, 60 * minutes / len(targets), seed, only=case)
        for number, text in figures.bad[:5]:
            again = f"python -m tests.fuzz --only {name} --case {number}"
            print(f"\n{name}: bad case; again with: {again}\n{text}\n", flush=True)
        if len(figures.bad) > 5:
            print(f"{name}: and {len(figures.bad) - 5} more")
        print(figures.line(), flush=True)
        bad += len(figures.bad)
    print(f"{bad} bad", flush=True)
    return 1 if bad else 0


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    named = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "shoestring" in frame.filename]
    return ", ".join(named[:3]) or "no file of the package"


def _one_process(figures: Figures, seconds: float, seed: str, only: int | None, most: int | None, package: str) -> bool:
    """Cases in a process of its own, into `figures`. Returns whether it came to its end by itself."""
    context: Any = multiprocessing.get_context(START)
    here, there = context.Pipe(duplex=False)
    scratch = Path(tempfile.mkdtemp(prefix=f"fuzz-{figures.name}-"))
    known = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "SHOESTRING_CACHE": str(scratch / "cache")}
    before = {key: os.environ.get(key) for key in known}
    os.environ.update(known)  # the child's, from its first line on
    process = context.Process(
        target=_work, args=(figures.name, there, scratch, seconds, seed, only, most, package), daemon=True
    )
    process.start()
    there.close()
    for key, value in before.items():
        if value is None:
            del os.environ[key]
        else:
            os.environ[key] = value
    current, limit = only or 0, PREPARATION
    try:
        while True:
            if not here.poll(limit):
                figures.bad.append((current, f"a hang: no answer within {limit:g} s"))
                return False
            kind, *told = here.recv()
            if kind == "ready":
                limit = told[0]
            elif kind == "case":
                current = told[0]
            elif kind == "result":
                outcome, text, took = told
                figures.slowest = max(figures.slowest, took)
                if outcome == "bad":
                    figures.bad.append((current, text))
                elif outcome == "refused":
                    figures.refused += 1
                else:
                    figures.accepted += 1
            elif kind == "failed":
                raise SystemExit(f"the target {figures.name} could not be prepared:\n{told[0]}")
            else:
                return True
    except EOFError:
        process.join(10)
        figures.bad.append((current, f"the process died with exit code {process.exitcode}"))
        return False
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        here.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _work(
    name: str,
    pipe: Connection,
    scratch: Path,
    seconds: float,
    seed: str,
    only: int | None,
    most: int | None,
    package: str,
) -> None:
    """A process that prepares a target and makes its cases."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, of the process; what counts is raised
    try:
        module = importlib.import_module(f"{package}.{name}")
        folder = scratch / "target"
        folder.mkdir()
        case = module.prepare(folder)
    except BaseException as error:
        pipe.send(("failed", "".join(traceback.format_exception(error))))
        return
    held = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    if held:
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    pipe.send(("ready", getattr(module, "LIMIT", LIMIT)))
    source, done, end = random.Random(seed), 0, time.monotonic() + seconds
    while only is not None or (time.monotonic() < end and done != most):
        number = source.getrandbits(48) if only is None else only
        pipe.send(("case", number))
        began = time.monotonic()
        outcome, text = judge(case, number)
        pipe.send(("result", outcome, text, time.monotonic() - began))
        done += 1
        if done % 100 == 0:
            gc.collect()
        if only is not None:
            break
    pipe.send(("end",))
