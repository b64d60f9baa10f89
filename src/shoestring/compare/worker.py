"""One run of a comparison, in a process of its own: its memory is its own, and its failure nobody else's."""

import logging
import sys
import tomllib
from pathlib import Path
from typing import Any

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import build
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError
from shoestring.log_lines import log_to
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.config import RunConfig
from shoestring.train.execution import keep_compiled_code
from shoestring.train.run_folder import RunFolder
from shoestring.train.starting import start
from shoestring.train.stopping import stop_with_parent

log = logging.getLogger(__name__)

OUTPUT = "output.txt"
"""What a run had to say, in its folder."""


def train(asked: Any, path: Path | None) -> dict[str, str]:
    """The `Work` of a run: train a configuration in the new folder `path`. Leaves with status 1 when it fails.

    asked: 'configuration', complete, as TOML; 'data', the fingerprint that its data must have, or None.
    Returns 'refused', with the reason, where this machine has other data; else nothing.
    """
    assert path is not None
    config = build(RunConfig, tomllib.loads(asked["configuration"]))
    stop_with_parent()
    keep_freed_memory()
    keep_compiled_code(cache_folder())
    machine = probe(config.execution.device)
    with RunFolder.create(path) as folder:
        output = open(folder.path / OUTPUT, "w", buffering=1)  # noqa: SIM115 (the process ends with it)
        sys.stdout = sys.stderr = output  # a traceback goes there as well
        log_to(output)

        ledger = Ledger(folder.ledger)
        try:
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder())
            if asked["data"] not in (None, dataset.fingerprint):
                return {"refused": f"the text of {config.data.corpus} or its tokenizer is another here"}
            start(config, folder, ledger, dataset, machine, lambda line: None)
        except ShoestringError as error:
            log.error(f"failed: {error}")
            sys.exit(1)
    return {}
