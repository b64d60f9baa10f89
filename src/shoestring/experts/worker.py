"""One of the runs that a set of experts is made of: begun, gone on with, or found finished."""

import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from shoestring.budget import busy_waiting
from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine, cache_folder, probe
from shoestring.config import build
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError
from shoestring.locks import hold
from shoestring.log_lines import log_to
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.config import RunConfig
from shoestring.train.execution import keep_compiled_code
from shoestring.train.run_folder import RunFolder
from shoestring.train.starting import resume, start
from shoestring.train.stopping import stop_with_parent

log = logging.getLogger(__name__)


@functools.cache
def machine(device: str = "auto") -> Machine:
    """The machine, looked at once a process: several runs in a row are not to wait for it each time."""
    return probe(None if device == "auto" else device)


def finished(path: Path) -> bool:
    """Whether the run in a folder has spent its budget."""
    return RunFolder(path).read_summary().get("stopped") == "finished"


def train_run(config: RunConfig, path: Path) -> int | None:
    """Have a finished run of `config` in the folder `path`: nothing is done where there is one, one that was interrupted
    goes on from its newest checkpoint, and one that another process is training is waited for.

    Returns the signal that interrupted it, or None. Raises: UsageError, ShoestringError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    wait = f"waiting for the process that trains {path.name}"
    with hold(path.parent / f".{path.name}.lock", wait=wait):
        folder = RunFolder(path)
        if finished(path):
            return None
        if not folder.begun:
            with RunFolder.create(path), _ledger(folder) as ledger:
                with ledger.clock("data"):
                    dataset = prepare(config.data, cache_folder())
                dataset.tokenizer.save(folder.tokenizer)
                found = machine(config.execution.device)
                return start(config, folder, ledger, dataset, found, lambda line: None).signal
        with folder.held(), _ledger(folder) as ledger:
            # its files lie where they do now, should the experts' folder or the corpus have been moved
            own = folder.read_config()
            model = replace(own.model, base=config.model.base) if own.model.base else own.model
            config = replace(own, data=config.data, model=model)
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder())
            return resume(folder, config, ledger, dataset, lambda line: None).signal


@contextmanager
def _ledger(folder: RunFolder) -> Iterator[Ledger]:
    ledger = Ledger(folder.ledger)
    try:
        yield ledger
    finally:
        ledger.close()


def work(tree: dict[str, object], path: str) -> None:
    """`train_run` as the whole of a process, of the configuration in plain values; what it says goes to PATH.log. Ends with
    the status of a command."""
    stop_with_parent()
    keep_freed_memory()
    busy_waiting.begin()
    keep_compiled_code(cache_folder())
    output = open(f"{path}.log", "a", buffering=1)  # noqa: SIM115 (the process ends with it)
    sys.stdout = sys.stderr = output  # a traceback goes there as well
    log_to(output)

    try:
        stopped = train_run(build(RunConfig, tree), Path(path))
    except ShoestringError as error:
        log.error(str(error))
        sys.exit(error.exit_status)
    sys.exit(0 if stopped is None else 128 + stopped)
