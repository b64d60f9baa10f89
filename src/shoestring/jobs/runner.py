"""The contract of whoever makes jobs, and the table of those who can be named on a command line."""

import importlib
import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from typing import Any, Protocol

from shoestring.errors import ShoestringError, UsageError, did_you_mean
from shoestring.jobs.job import Job, JobMachine, Made, plain

log = logging.getLogger(__name__)

LOCAL = "local"
"""The name of this machine with its processes, which every command has."""

RUNNERS = {"ray": "shoestring.jobs.on_ray:RayRunner"}
"""Who else can be named with `--on NAME[:ADDRESS]`: a class, constructed as `Elsewhere` says."""

TRIES = 3
"""How often a job is begun at most, where it is lost with the machine or process that makes it."""


class Runner(Protocol):
    """Makes jobs. `Here`, `Processes` and `RayRunner` are some."""

    def map(self, jobs: Iterable[Job]) -> Generator[Made, None, None]:
        """Make all of these jobs. Each is yielded when it has ended, in any order.

        A job is taken from `jobs` when there is room for it, and no sooner. One that ends with a status of its own, or whose
        process is killed, is yielded too: that is for whoever asked to judge. To close the generator ends what is under way.

        Raises: Lost, after all others, for jobs whose machines were lost too often; and what the function raises, where it
        is called in this process.
        """
        ...


class Elsewhere(Runner, Protocol):
    """A runner on other machines. A context manager: what it started ends with it.

    Constructed with address: what stands after the colon of `--on`, '' where nothing does. at_once: jobs at a time; None: as
    many as there is room for. threads, gpus: of the job that needs most. whole_machines: one job at a time on each machine.
    """

    def machines(self) -> Sequence[JobMachine]:
        """Those that jobs can be made on now."""
        ...

    def __enter__(self) -> "Elsewhere": ...

    def __exit__(self, *error: Any) -> None: ...


class Lost(ShoestringError):
    """Jobs that could not be made, as whatever made them was lost every time. jobs: those."""

    def __init__(self, jobs: Sequence[Job], tries: int, reason: str) -> None:
        self.jobs = tuple(jobs)
        names = "; ".join(job.name for job in jobs)
        super().__init__(f"lost {tries} times each, and given up: {names} ({reason})")


class Here:
    """Makes jobs in this process, one after the other."""

    def map(self, jobs: Iterable[Job]) -> Generator[Made, None, None]:
        """As `Runner.map`."""
        for job in jobs:
            log.info(job.name)
            yield Made(job, 0, plain(job.function(plain(job.asked), job.folder)), None)


def elsewhere(
    word: str, *, at_once: int | None = None, threads: int = 1, gpus: int = 0, whole_machines: bool = False
) -> Elsewhere:
    """The runner that `--on WORD` names, which is not 'local'. The options are those of `Elsewhere`.

    Raises: UsageError where there is none of the name, or it cannot be had.
    """
    name, _, address = word.partition(":")
    if name not in RUNNERS:
        raise UsageError(f"--on {word}: {did_you_mean(name, [LOCAL, *RUNNERS])}")
    module, _, made = RUNNERS[name].partition(":")
    found: Elsewhere = getattr(importlib.import_module(module), made)(
        address, at_once=at_once, threads=threads, gpus=gpus, whole_machines=whole_machines
    )
    return found


def in_order(runner: Runner, jobs: Sequence[Job]) -> list[Made]:
    """All of these jobs made, in their own order. Raises: ShoestringError for one that did not end well; as `Runner.map`."""
    found = dict[str, Made]()
    with closing(runner.map(jobs)) as made:
        for each in made:
            if each.status:
                raise ShoestringError(f"{each.job.name} ended with status {each.status}: {each.said}")
            found[each.job.name] = each
    return [found[job.name] for job in jobs]
