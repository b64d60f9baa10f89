"""`shoestring train` by several processes: the command starts itself once for each worker, or torchrun has done so."""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoestring.cli.fingerprint import digest
from shoestring.config import Tree, build, tree
from shoestring.data.dataset import Dataset
from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.processes import launch
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.all_gather import all_gather
from shoestring.sync.rendezvous.joining import join, leave, world_size
from shoestring.sync.transport.base import Transport
from shoestring.sync.transport.heartbeat import TIMEOUT
from shoestring.train.checkpoint import list_checkpoints
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import RunFolder

STARTED = "SHOESTRING_STARTED"
"""Where the monotonic clock stood when the command was given: what starting the workers takes is on the run's ledger."""

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


def needs_processes(workers: int, transport: str) -> bool:
    """Whether a run takes several processes, and this is none of them yet."""
    return workers > 1 and transport == "distributed" and not is_worker()


def leads() -> bool:
    """Whether this process speaks for the run."""
    return os.environ.get("RANK", "0") == "0"


def started() -> float | None:
    """The monotonic clock's reading when the command was given; None where this process was not started by one."""
    text = os.environ.get(STARTED)
    return float(text) if text else None


def start_workers(words: Sequence[str], workers: int, outputs: Path) -> int:
    """Run `shoestring train` with these words once for each worker, and wait. Returns the exit status."""
    began = time.monotonic()
    command = [sys.executable, "-m", "shoestring", "train", *words]
    with launch(command, workers, outputs=outputs, environment={STARTED: str(began)}) as team:
        return team.wait()


def own_folder(run: Path, rank: int) -> Path:
    """Where a worker keeps its part of a run: the leader in the run's folder itself."""
    return run if rank == 0 else run / "workers" / str(rank)


def add_heartbeat_flag(parser: argparse.ArgumentParser) -> None:
    """Add --heartbeat-timeout."""
    parser.add_argument(
        "--heartbeat-timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="with --workers or torchrun: a worker without a heartbeat for so long counts as frozen, and the run ends "
        f"(default {TIMEOUT:g})",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return seconds


@contextmanager
def joined(asked: Tree, workers: int, heartbeat_timeout: float, start: str = "anew") -> Iterator[Transport]:
    """The link to the other workers, all of whom were asked for the same.

    asked: the plain values of recipe and flags, or of the configuration of a run that goes on.
    workers: how many the run has.
    heartbeat_timeout: seconds without a heartbeat until a worker counts as frozen.
    start: as in `RunFingerprint`.
    """
    recipe = {key: value for key, value in asked.items() if key not in ("model", "data")}
    parts = {"recipe": recipe, "model": asked.get("model"), "data": asked.get("data")}
    fingerprints = {name: digest(part) for name, part in parts.items()}
    fingerprint = RunFingerprint(workers=workers, start=start, **fingerprints)
    transport = join(PATIENCE, fingerprint=fingerprint, heartbeat_timeout=heartbeat_timeout)
    try:
        yield transport
    finally:
        leave(transport)


def settle_run(transport: Transport, mine: tuple[Path, RunConfig] | None) -> tuple[Path, RunConfig]:
    """The run's folder and its resolved configuration, which the leader decides. mine: the leader's; None at any other
    worker."""
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
