"""Work for jobs, for tests: in a module of its own, so that a process that makes one finds it by name."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def double(asked: Any, folder: Path | None) -> Any:
    """Twice the number; a file with it where there is a folder."""
    if folder is not None:
        (folder / "deep").mkdir(parents=True)
        (folder / "number.txt").write_text(str(2 * asked["number"]))
        (folder / "deep" / "bytes").write_bytes(bytes(range(256)))
        (folder / "heavy").mkdir()
        (folder / "heavy" / "weights").write_bytes(b"0" * 1000)
    return {"twice": 2 * asked["number"]}


def leave(asked: Any, folder: Path | None) -> Any:
    """Ends with a status, or below zero by a signal; after so many seconds."""
    time.sleep(asked.get("seconds", 0))
    if asked["status"] < 0:
        os.kill(os.getpid(), -asked["status"])
    sys.exit(asked["status"])


def at_first_lost(asked: Any, folder: Path | None) -> Any:
    """Killed as by a machine that is lost, until it has been begun `asked['times']` times before; says by which process."""
    marks = Path(asked["marks"])
    begun = len(list(marks.iterdir()))
    (marks / str(begun)).touch()
    if begun < asked["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"begun": begun + 1}


def together(asked: Any, folder: Path | None) -> Any:
    """Returns once `asked['count']` of its kind are under way."""
    marks = Path(asked["marks"])
    (marks / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(marks.iterdir())) < asked["count"]:
        if time.monotonic() > end:
            raise TimeoutError("nobody else came")
        time.sleep(0.01)
    return {}


def long_answer(asked: Any, folder: Path | None) -> Any:
    """More than a pipe holds."""
    return "x" * asked["length"]


def wait_long(asked: Any, folder: Path | None) -> Any:
    """Says who it is, and waits."""
    Path(asked["mark"]).write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def mixture_loss(asked: Any, folder: Path | None) -> float:
    """What a proxy would end at whose domains are worth 3, 2 and 1 nats."""
    return sum(weight * loss for weight, loss in zip(asked["weights"], (3.0, 2.0, 1.0), strict=True))
