"""Jobs made in processes of this machine: the memory of each is its own, and its failure nobody else's."""

import json
import logging
import multiprocessing
import os
from collections.abc import Generator, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from shoestring.budget import busy_waiting
from shoestring.jobs.job import Job, JobMachine, Made, plain

log = logging.getLogger(__name__)

GPUS = "CUDA_VISIBLE_DEVICES"


class _Running(NamedTuple):
    job: Job
    process: BaseProcess
    answers: Connection


class Processes:
    """Makes each job in a process of its own, forked from one that has imported everything and computed nothing.

    at_once: jobs at a time.
    preload: modules to be imported before the first job begins.
    """

    def __init__(self, at_once: int = 1, preload: Sequence[str] = ()) -> None:
        self.at_once = at_once
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, *preload])

    def map(self, jobs: Iterable[Job]) -> Generator[Made, None, None]:
        """As `Runner.map`."""
        waiting, running = iter(jobs), dict[int, _Running]()
        answers = dict[int, bytes]()
        try:
            while True:
                while len(running) < self.at_once and (job := next(waiting, None)) is not None:
                    started = self._started(job)
                    running[started.process.sentinel] = started
                if not running:
                    return
                # an answer is read before its process ends: one too long for the pipe would keep it from ending
                open_ones = {each.answers: sentinel for sentinel, each in running.items() if sentinel not in answers}
                for ready in wait([*running, *open_ones]):
                    if isinstance(ready, Connection):
                        answers[open_ones[ready]] = _received(ready)
                for sentinel in wait(list(running), timeout=0):
                    assert isinstance(sentinel, int)
                    ended = running.pop(sentinel)
                    ended.process.join()
                    answer = answers.pop(sentinel) if sentinel in answers else _received(ended.answers)
                    ended.answers.close()
                    yield _made(ended.job, ended.process.exitcode or 0, answer)
        finally:
            for each in running.values():
                each.process.terminate()
            for each in running.values():
                each.process.join()
                each.answers.close()

    def _started(self, job: Job) -> _Running:
        log.info(job.name)
        receiving, sending = self._context.Pipe(duplex=False)
        folder = None if job.folder is None else str(job.folder)
        process = self._context.Process(
            target=_work, args=(job.work, json.dumps(job.asked), folder, os.environ.get(GPUS), sending)
        )
        process.start()
        sending.close()
        return _Running(job, process, receiving)


def _work(work: str, asked: str, folder: str | None, gpus: str | None, sending: Connection) -> None:
    """The whole of a job's process. gpus: those that it may see, which may have changed since the server was started."""
    if gpus is not None:
        os.environ[GPUS] = gpus
    job = Job("", work, json.loads(asked), None if folder is None else Path(folder))
    busy_waiting.begin()
    value, said, here = None, "", JobMachine.here().as_json
    try:
        value = plain(job.function(job.asked, job.folder))
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise  # its traceback goes where the process writes
    finally:
        sending.send_bytes(json.dumps({"value": value, "machine": here, "said": said}).encode())


def _received(answers: Connection) -> bytes:
    """What a process answered; nothing where it ended without an answer."""
    try:
        return answers.recv_bytes() if answers.poll() else b""
    except EOFError:
        return b""


def _made(job: Job, status: int, answer: bytes) -> Made:
    if not answer:
        return Made(job, status, None, None)
    found: dict[str, Any] = json.loads(answer)
    return Made(job, status, found["value"], JobMachine(**found["machine"]), said=found["said"])
