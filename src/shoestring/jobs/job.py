"""A job is plain data that says what to call, and what came of it is plain data and a folder.

So a job can be made anywhere: in this process, in one of this machine, or on a machine that has never seen this one's memory.
"""

import importlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shoestring import __version__
from shoestring.budget.machine import default_device, device_name, fingerprint
from shoestring.errors import UsageError

Work = Callable[[Any, Path | None], Any]
"""(what is asked for, the folder of the job) -> what came of it; both are values of JSON."""


@dataclass(frozen=True)
class Job:
    """What is to be done once, apart from all other jobs.

    name: for people; unique among the jobs that are given together.
    work: 'module:function', a `Work`.
    asked: what it is called with, values of JSON.
    folder: where its files are to be; None: it keeps none.
    leaves: names of folders in it that need not come back from another machine.
    threads: that it computes with; 0: as many as the machine has cores.
    gpus: that it needs.
    """

    name: str
    work: str
    asked: Any
    folder: Path | None = None
    leaves: tuple[str, ...] = ()
    threads: int = 1
    gpus: int = 0

    @property
    def function(self) -> Work:
        """Raises: UsageError where there is no such function."""
        module, _, name = self.work.partition(":")
        try:
            found: Work = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{self.work} cannot be called on {platform.node()}: {error}") from None
        return found


@dataclass(frozen=True)
class JobMachine:
    """The machine that a job was made on.

    host: its name.
    device: its processor or GPU.
    fingerprint: of all that decides how fast it is and how it rounds: device, cores, version of torch.
    versions: of shoestring and torch.
    """

    host: str
    device: str
    fingerprint: str
    versions: str

    @classmethod
    def here(cls) -> "JobMachine":
        """The one that this process runs on."""
        device = default_device()
        mark = fingerprint(device, os.cpu_count() or 1)
        return cls(platform.node(), device_name(device), mark, f"shoestring {__version__}, torch {version('torch')}")

    @property
    def as_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Made:
    """How a job ended.

    status: 0; else how its process ended: an exit status, or below zero a signal.
    value: what the function returned; None where it did not return.
    machine: that it was made on; None where it is not known, as of a process that was killed.
    tries: how often it was begun.
    said: of an exception that ended it, in one line.
    """

    job: Job
    status: int
    value: Any
    machine: JobMachine | None
    tries: int = 1
    said: str = ""


def plain(value: Any) -> Any:
    """A value as JSON would give it back. Raises: TypeError, ValueError for what JSON cannot hold."""
    return json.loads(json.dumps(value, allow_nan=False))


def identify(asked: Any, folder: Path | None) -> dict[str, str]:
    """The `Work` that says where it is done."""
    return JobMachine.here().as_json
