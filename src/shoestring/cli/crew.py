"""`shoestring train` by several processes: the command starts itself once for each worker, or torchrun has done so."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoestring.config import Tree, build, tree
from shoestring.data.dataset import Dataset
from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.admission import Passport
from shoestring.sync.joining import join, leave
from shoestring.sync.processes import launch
from shoestring.sync.sharing import share
from shoestring.sync.transport.base import Transport
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


@contextmanager
def joined(asked: Tree, workers: int) -> Iterator[Transport]:
    """The link to the other workers, all of whom were asked for the same. asked: the plain values of recipe and flags."""
    recipe = hashlib.blake2b(json.dumps(asked, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
    transport = join(PATIENCE, passport=Passport(workers=workers, recipe=recipe))
    try:
        yield transport
    finally:
        leave(transport)


def settle_run(transport: Transport, mine: tuple[Path, RunConfig, Dataset] | None) -> tuple[Path, RunConfig, str]:
    """The run's folder, its resolved configuration and its data's fingerprint, which the leader decides. mine: the
    leader's; None at any other worker."""
    content: Any = None
    if mine is not None:
        path, config, dataset = mine
        content = {"run": str(path), "config": tree(config), "data": dataset.fingerprint}
    said = share(transport, content, number=0)[0]
    return Path(said["run"]), build(RunConfig, said["config"]), said["data"]


def require_same_data(transport: Transport, dataset: Dataset, expected: str) -> None:
    """Raises: UsageError at every worker where one of them reads other data."""
    for rank, found in enumerate(share(transport, dataset.fingerprint, number=1)):
        if found != expected:
            raise UsageError(
                f"worker {rank} reads another corpus or tokenizer than worker 0 (fingerprints {found:.8} and {expected:.8})"
            )


def common_step(transport: Transport, folder: RunFolder) -> int | None:
    """The newest step of which every worker has a checkpoint; None where no worker has any.

    Raises: ShoestringError where they have, and none in common.
    """
    each = [set(steps) for steps in share(transport, list_checkpoints(folder.checkpoints), number=2)]
    common = set.intersection(*each)
    if not common and any(each):
        raise ShoestringError(f"{folder.path} cannot go on: the workers have no checkpoint of the same step")
    return max(common, default=None)
