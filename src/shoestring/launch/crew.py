"""A run trained by several processes of a fixed number: this process starts them, or torchrun has, and this is one of them."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from shoestring.budget.ledger import RESTART, Ledger
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import Tree, build, tree
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError, UsageError
from shoestring.launch.diagnosis import diagnosed, note_event
from shoestring.launch.fingerprint import digest, without_places
from shoestring.launch.processes import WorkerFailed, launch
from shoestring.launch.request import TrainingRequest
from shoestring.launch.resuming import resumed_config
from shoestring.launch.way import Ended, LaunchContext
from shoestring.parallel.layout import ParallelLayout
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.all_gather import all_gather
from shoestring.sync.rendezvous.joining import join, leave, world_size
from shoestring.sync.transport.base import Transport
from shoestring.sync.transport.distributed import DistributedTransport
from shoestring.train.checkpoint import list_checkpoints
from shoestring.train.config import RunConfig
from shoestring.train.participation import FixedWorkers, Participation
from shoestring.train.run_folder import RunFolder
from shoestring.train.session import Outcome
from shoestring.train.starting import begin, resolve, resume

log = logging.getLogger(__name__)

STARTED = "SHOESTRING_STARTED"
"""Where the monotonic clock stood when the command was given: what starting the workers takes is on the run's ledger."""

RESTARTS = "SHOESTRING_RESTARTS"
"""How often the workers were started again: what passed since `STARTED` is then the restart's."""

PATIENCE = 300.0
"""Seconds that a worker waits for the others: one of them may be preparing a corpus, judging the model or writing it."""


def is_worker() -> bool:
    """Whether this process is one of several, started by `start_workers` or by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def processes() -> int | None:
    """How many processes were started for a run, of which this is one; None where it is none of several."""
    return world_size() if is_worker() else None


def require_distributed(transport: str) -> None:
    """Raises: UsageError where this process is one of several and the run is not by processes that were started for it."""
    if is_worker() and transport != "distributed":
        raise UsageError(
            f"transport = {transport}: such a run is started by one command, not by torchrun (RANK and WORLD_SIZE are set), "
            "which goes with --transport distributed"
        )


def leads() -> bool:
    """Whether this process speaks for the run."""
    return os.environ.get("RANK", "0") == "0"


def started() -> float | None:
    """The monotonic clock's reading when the command was given; None where this process was not started by one."""
    text = os.environ.get(STARTED)
    return float(text) if text else None


def start_workers(
    command: Sequence[str], workers: int, outputs: Path, *, began: float | None = None, restarts: int = 0
) -> int:
    """Run a command once for each worker, and wait. Returns 0, or 128 + n where signal n has stopped them.

    command: the words of a command that trains as one worker of a run.
    workers: how many to start.
    outputs: the folder for what all but the first of them write.
    began: where the monotonic clock stood when the time began that starting them takes; None: now.
    restarts: how often they were started before.
    Raises: WorkerFailed, of the first that failed.
    """
    began = time.monotonic() if began is None else began
    with launch(command, workers, outputs=outputs, environment={STARTED: str(began), RESTARTS: str(restarts)}) as team:
        return team.wait()


def silence(folder: RunFolder) -> float:
    """Seconds since the run's ledger was last written; 0 where it never was."""
    try:
        return max(time.time() - folder.ledger.stat().st_mtime, 0.0)
    except OSError:
        return 0.0


def opened_ledger(folder: RunFolder) -> Ledger:
    """The ledger of a worker that was started by a command, or again after one was lost."""
    ledger = Ledger(folder.ledger, since=started())
    if os.environ.get(RESTARTS, "0") != "0":
        ledger.passed(RESTART)
    return ledger


def own_folder(run: Path, rank: int, island: int = 1) -> Path:
    """Where a process keeps its part of a run: the leader in the run's folder itself.

    island: processes of one of several workers. The first of each keeps what a worker of one process would, at the same place.
    """
    worker, place = divmod(rank, island)
    if place:
        return run / "workers" / f"{worker}.{place}"
    return run if worker == 0 else run / "workers" / str(worker)


def island_of(workers: int, layout: ParallelLayout) -> int:
    """Processes of each of several workers; 1 too where there is one worker, of any number of processes."""
    return layout.processes if workers > 1 else 1


@contextmanager
def joined(
    asked: Tree, workers: int, heartbeat_timeout: float, start: str = "anew", island: int = 1
) -> Iterator[Transport]:
    """The link to the other processes, all of which were asked for the same.

    asked: the plain values of recipe and flags, or of the configuration of a run that goes on.
    workers: how many processes the run has.
    island: of `island_of`: where it is above one, torch's default group is of the island's processes.
    heartbeat_timeout: seconds without a heartbeat until a worker counts as frozen.
    start: as in `RunFingerprint`.
    """
    recipe = {key: value for key, value in asked.items() if key not in ("model", "data")}
    parts = {"recipe": recipe, "model": asked.get("model"), "data": asked.get("data")}
    fingerprints = {name: digest(part) for name, part in parts.items()}
    fingerprint = RunFingerprint(workers=workers, start=start, **fingerprints)
    transport = join(
        PATIENCE,
        fingerprint=fingerprint,
        heartbeat_timeout=heartbeat_timeout,
        island=island if island > 1 else None,
    )
    try:
        yield transport
    finally:
        leave(transport)


def settle_run(transport: Transport, mine: tuple[Path, RunConfig] | None) -> tuple[Path, RunConfig]:
    """The run's folder and its resolved configuration, which the leader decides.

    mine: the leader's; None at any other worker.
    """
    content: Any = None
    if mine is not None:
        path, config = mine
        content = {"run": str(path), "config": tree(config)}
    said = all_gather(transport, content, number=0)[0]
    return Path(said["run"]), build(RunConfig, said["config"])


def require_same_data(transport: Transport, dataset: Dataset) -> None:
    """Raises: UsageError at every worker where one of them reads other data."""
    first, *others = all_gather(transport, dataset.fingerprint, number=1)
    for rank, found in enumerate(others, start=1):
        if found != first:
            raise UsageError(
                f"worker {rank} reads another corpus or tokenizer than worker 0 (fingerprints {found:.8} and {first:.8})"
            )


def common_step(transport: Transport, folder: RunFolder) -> int | None:
    """The newest step of which every worker has a checkpoint; None where no worker has any.

    Raises: ShoestringError where they have, and none in common.
    """
    each = [set(steps) for steps in all_gather(transport, list_checkpoints(folder.checkpoints), number=2)]
    common = set.intersection(*each)
    if not common and any(each):
        raise ShoestringError(f"{folder.path} cannot go on: the workers have no checkpoint of the same step")
    return max(common, default=None)


def place_of(config: RunConfig, transport: Transport, run: Path) -> Participation:
    """The place of this process in a run: one of several workers, one of several processes of one worker, or both.

    run: the run's folder.
    """
    if config.parallel.processes == 1:
        return FixedWorkers(transport)
    if config.workers == 1:
        from shoestring.train.parallel import ParallelProcesses  # torch's engines, which take a second to import

        return ParallelProcesses(transport, run)
    from shoestring.train.islands import IslandProcesses

    assert isinstance(transport, DistributedTransport)
    island = config.parallel.processes
    place = transport.rank % island
    links = transport.among(range(place, transport.size, island))
    return IslandProcesses(links, place, keeper_folder(run, config, transport.rank))


def keeper_folder(run: Path, config: RunConfig, rank: int) -> Path:
    """The folder of the process that keeps the checkpoints of the worker that this process is, or is a part of."""
    island = island_of(config.workers, config.parallel)
    if config.workers == 1 and config.parallel.processes > 1:
        return run
    return own_folder(run, rank - rank % island, island)


class Crew:
    """The `Way` of a fixed number of processes: starts them, unless this process is one of them.

    heartbeat_timeout: seconds without a heartbeat until a worker counts as frozen, and the run ends.
    command: the words of a command that trains as one worker of this run; None: `python -m shoestring.launch`.
    resume_command: those of one that goes on with a run, whose folder follows; needed beside `command` alone.
    max_restarts: how often the run goes on by itself from its last checkpoint, where a worker is lost.
    """

    def __init__(
        self,
        place: LaunchContext,
        heartbeat_timeout: float,
        command: Sequence[str] | None = None,
        resume_command: Sequence[str] | None = None,
        max_restarts: int = 0,
    ) -> None:
        self.place, self.view, self.heartbeat_timeout = place, place.view, heartbeat_timeout
        self.command, self.resume_command, self.max_restarts = command, resume_command, max_restarts

    def begin(self, request: TrainingRequest, out: Path) -> Ended:
        if is_worker():
            return self._begin_as_worker(request, out)
        with RunFolder.create(out):
            pass  # refused here where it is taken: the first worker will hold it
        asked = {"begin": request.asked, "critical_batch": request.critical_batch, "out": str(out)}
        return self._start(asked, request.processes, out)

    def resume(self, path: Path, step: int | None, moved: Tree) -> Ended:
        if is_worker():
            return self._resume_as_worker(path, step, moved)
        folder = RunFolder.open(path)
        with folder.held():
            pass  # said here where another process is at work there: the first worker will hold it
        processes = resumed_config(folder, moved).processes
        return self._start({"resume": str(path), "step": step, "moved": moved}, processes, path)

    def _start(self, asked: Tree, workers: int, path: Path) -> Ended:
        command, folder = self.command or self._words(asked), RunFolder(path)
        restarts, began = 0, time.monotonic()
        while True:
            try:
                status = start_workers(command, workers, path / "workers", began=began, restarts=restarts)
                break
            except WorkerFailed as error:
                if restarts >= self.max_restarts or not _lost(error, folder):
                    raise
                restarts += 1
                began = time.monotonic() - silence(folder)
                command = self._after(error, command, folder, restarts)
        stopped = "finished" if status == 0 else "interrupted"
        outcome = Outcome(stopped, status - 128 if status else None, folder.read_summary(), "")
        return Ended(folder, outcome, leads=False)

    def _words(self, asked: Tree) -> list[str]:
        asked = {**asked, "heartbeat_timeout": self.heartbeat_timeout}
        return [sys.executable, "-m", "shoestring.launch", json.dumps(asked)]

    def _after(self, error: WorkerFailed, command: Sequence[str], folder: RunFolder, number: int) -> Sequence[str]:
        """Say that the workers are started again. Returns the command that goes on: the same where nothing had begun."""
        begun = folder.begun
        steps = list_checkpoints(folder.checkpoints) if begun else []
        where = f"from the checkpoint of step {steps[-1]}" if steps else "from its first step"
        log.warning("%s; restart %d of %d: the run goes on %s", error, number, self.max_restarts, where)
        if not begun:
            return command
        known = {key: error.note[key] for key in ("host", "phase", "step") if key in error.note}
        note_event(folder, "restart", rank=error.rank, frozen=error.frozen, goes_on=steps[-1] if steps else 0, **known)
        if "--resume" in command and "--from-step" not in command:
            return command
        if self.resume_command is not None:
            return [*self.resume_command, str(folder.path)]
        return self._words({"resume": str(folder.path), "step": None, "moved": {}})

    def _begin_as_worker(self, request: TrainingRequest, out: Path) -> Ended:
        """The leader decides, and all train."""
        place, view = self.place, self.view
        island = island_of(request.workers, request.parallel)
        with joined(request.asked, request.processes, self.heartbeat_timeout, "anew", island) as transport:
            mine = None
            if transport.rank == 0:
                machine = probe()
                folder = place.held.enter_context(RunFolder.create(out, workers=started() is not None))
                ledger = opened_ledger(folder)
                dataset, config, expected = place.decide(request, folder, ledger, machine)
                config = resolve(config, dataset, machine, ledger, expected)
                mine = (folder.path, config)
            path, config = settle_run(transport, mine)
            if transport.rank != 0:
                machine = probe()
                folder = place.held.enter_context(RunFolder.create(own_folder(path, transport.rank, island)))
                ledger = opened_ledger(folder)
                with ledger.clock("data"):
                    dataset = prepare(config.data, cache_folder())
                dataset.tokenizer.save(folder.tokenizer)
            require_same_data(transport, dataset)
            with view.watch(config, machine) as watch, _diagnosed(transport, folder, ledger, config):
                outcome = begin(config, folder, ledger, dataset, machine, watch.show, place_of(config, transport, path))
        return Ended(folder, outcome, leads())

    def _resume_as_worker(self, path: Path, step: int | None, moved: Tree) -> Ended:
        config = resumed_config(RunFolder.open(path), moved)
        start = "from the newest checkpoint" if step is None else f"from the checkpoint of step {step}"
        island = island_of(config.workers, config.parallel)
        asked = without_places(tree(config))
        with joined(asked, config.processes, self.heartbeat_timeout, start, island) as transport:
            folder = RunFolder(own_folder(path, transport.rank, island))
            folder.path.mkdir(parents=True, exist_ok=True)
            self.place.held.enter_context(folder.held())
            if not folder.begun:  # killed before this worker had begun
                folder.write_config(config)
            ledger = opened_ledger(folder)
            with self.view.watch(config, probe()) as watch:
                with ledger.clock("data"):
                    dataset = prepare(config.data, cache_folder())
                require_same_data(transport, dataset)
                keeper = RunFolder(keeper_folder(path, config, transport.rank))
                at = common_step(transport, keeper) if step is None else step
                place = place_of(config, transport, path)
                with _diagnosed(transport, folder, ledger, config):
                    outcome = resume(folder, config, ledger, dataset, watch.show, at, place)
        return Ended(folder, outcome, leads())


def _diagnosed(
    transport: Transport, folder: RunFolder, ledger: Ledger, config: RunConfig
) -> AbstractContextManager[None]:
    # workers that exchange wait for messages, and are told there; processes of one worker wait in collectives
    return diagnosed(transport, folder, ledger, ends=config.parallel.processes > 1)


def _lost(error: WorkerFailed, folder: RunFolder) -> bool:
    """Whether a run that failed so may go on by itself: neither what was asked for nor the training is at fault."""
    if error.exit_status == UsageError.exit_status:
        return False
    return not folder.begun or folder.read_summary().get("stopped") != "failed"
