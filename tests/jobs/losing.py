"""A runner for tests, on machines that are lost."""

from collections.abc import Generator, Iterable
from pathlib import Path

from shoestring.jobs.carried import packed, unpack
from shoestring.jobs.job import Job, JobMachine, Made, plain
from shoestring.jobs.runner import TRIES, Lost


class Losing:
    """A runner on machines that are lost: a job comes back from another machine as JSON and files, or is begun anew.

    losses: name -> how often what makes the job is lost.
    """

    def __init__(self, scratch: Path, losses: dict[str, int]) -> None:
        self.scratch, self.losses = scratch, losses
        self.begun = list[str]()

    def map(self, jobs: Iterable[Job]) -> Generator[Made, None, None]:
        """As `Runner.map`, the jobs given last first."""
        lost = list[Job]()
        for job in reversed(list(jobs)):
            for tries in range(1, TRIES + 1):
                self.begun.append(job.name)
                if tries > self.losses.get(job.name, 0):
                    there = self.scratch / f"there-{len(self.begun)}" if job.folder else None
                    value = plain(job.function(plain(job.asked), there))
                    if there is not None and job.folder is not None:
                        unpack(packed(there, job.leaves), job.folder)
                    yield Made(job, 0, value, JobMachine("there", "a processor", "0" * 16, "any"), tries)
                    break
            else:
                lost.append(job)
        if lost:
            raise Lost(lost, TRIES, "no machine")
