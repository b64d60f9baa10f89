"""One run of a comparison, in a process of its own: its memory is its own, and its failure nobody else's."""

import logging
import sys
from pathlib import Path

from shoestring.budget import busy_waiting
from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import build, read_toml
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError
from shoestring.log_lines import log_to
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.config import RunConfig
from shoestring.train.execution import keep_compiled_code
from shoestring.train.run_folder import RunFolder
from shoestring.train.session import start
from shoestring.train.stopping import stop_with_parent

log = logging.getLogger(__name__)

OUTPUT = "output.txt"
"""What a run had to say, in its folder."""


def train(recipe: str, path: str) -> None:
    """Train the complete configuration in the file `recipe` in the new folder `path`. Leaves with 1 when it fails."""
    config = build(RunConfig, read_toml(Path(recipe)))
    stop_with_parent()
    keep_freed_memory()
    busy_waiting.begin()
    keep_compiled_code(cache_folder())
    machine = probe(config.execution.device)
    with RunFolder.create(Path(path)) as folder:
        output = open(folder.path / OUTPUT, "w", buffering=1)  # noqa: SIM115 (the process ends with it)
        sys.stdout = sys.stderr = output  # a traceback goes there as well
        log_to(output)

        ledger = Ledger(folder.ledger)
        try:
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder())
            start(config, folder, ledger, dataset, machine, lambda line: None)
        except ShoestringError as error:
            log.error(f"failed: {error}")
            sys.exit(1)
