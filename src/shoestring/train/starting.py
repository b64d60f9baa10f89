"""Ways into a run: its configuration completed, and a session begun or gone on with."""

import logging
from dataclasses import replace

import torch

from shoestring.budget.ledger import Ledger, peak_memory
from shoestring.budget.machine import Machine, cache_folder
from shoestring.budget.units import parse_memory
from shoestring.data.dataset import Dataset
from shoestring.errors import UsageError
from shoestring.train.allocator import hand_back_freed_memory
from shoestring.train.assembly import with_transfer
from shoestring.train.base import is_native
from shoestring.train.config import RunConfig
from shoestring.train.execution import require_device
from shoestring.train.participation import Participation
from shoestring.train.run_folder import RunFolder, environment
from shoestring.train.session import Outcome, Record, Session, require_same_text
from shoestring.train.settling import settle
from shoestring.train.step_timings import Allowance

log = logging.getLogger(__name__)

COMPILER_MEMORY = 2e9
"""Bytes that must be left for blocks to be compiled: compiling SmolLM2's took 0.9 GB, beside which a step needs some."""

LOGIT_BYTES = 14
"""Of each logit, where all are in memory: in the type of the products and in float32, with the gradients of both."""


def resolve(
    config: RunConfig, dataset: Dataset, machine: Machine, ledger: Ledger, expected: float | None = None
) -> RunConfig:
    """The configuration with nothing left open: the vocabulary from the tokenizer, every 'auto' measured.

    expected: seconds that the run is planned to take, where its budget has none: neither measuring nor compiling is to take
    much of them. None there: as long as it takes.
    Raises: UsageError where the device is not here.
    """
    require_device(config.execution)
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    if not config.model.base:  # a base has room for more tokens than its tokenizer, often
        config = replace(config, model=replace(config.model, vocabulary=dataset.tokenizer.vocabulary))
    config = _within_memory(with_transfer(config))
    layout = config.parallel
    if (layout.processes > 1 or layout.checkpointing != "none") and config.execution.compile == "auto":
        config = replace(config, execution=replace(config.execution, compile="none"))
        log.info("blocks are not compiled: [parallel] has been tried without")
    if layout.precision == "bfloat16" and config.execution.precision == "auto":
        config = replace(config, execution=replace(config.execution, precision="bfloat16"))
    if layout.processes > 1 and config.execution.device == "auto":
        config = replace(config, execution=replace(config.execution, device="cpu"))
        if machine.device != "cpu":
            log.warning("[parallel] has been run on CPUs alone: it trains on the CPU of this machine")
    seconds = config.budget.seconds or expected
    left = None
    if seconds is not None:
        left = seconds - (ledger.totals.wall_clock if config.budget.seconds else 0.0)
    with ledger.clock("measure"):
        execution = settle(
            config.execution,
            config.model,
            rows=config.train.micro_batch or config.train.batch // config.parts,
            seconds=seconds,
            machine=machine,
            cache=cache_folder(),
            allowance=Allowance.share(seconds, left, ledger.totals.seconds.get("measure", 0.0)),
            clock=ledger.clock,
            unlike="packed" if config.model.packed else "" if is_native(config.model) else "wrapped",
            frozen_head=any(edit.engine == "tune" for edit in config.edits),
        )
    hand_back_freed_memory()  # what was measured needs no more
    for reason in execution.reasons:
        log.info(reason)
    return replace(config, execution=replace(execution.config, threads=torch.get_num_threads()))


def _within_memory(config: RunConfig) -> RunConfig:
    """The configuration without what `memory` has no room for: the compiler, and the logits of all tokens at once."""
    if config.memory is None:
        return config
    room, execution = parse_memory(config.memory) - peak_memory(), config.execution
    if execution.compile == "auto" and room < COMPILER_MEMORY:
        execution = replace(execution, compile="none")
        log.info(f"blocks are not compiled: the compiler takes too much for a memory of {config.memory}")
    tokens = (config.train.micro_batch or config.train.batch // config.parts) * config.model.context
    if execution.loss == "auto" and LOGIT_BYTES * tokens * config.model.vocabulary > room / 8:
        execution = replace(execution, loss="fused")
        log.info(f"loss fused: the logits of {tokens:,} tokens at once take too much for a memory of {config.memory}")
    return replace(config, execution=execution)


def start(
    config: RunConfig,
    folder: RunFolder,
    ledger: Ledger,
    dataset: Dataset,
    machine: Machine,
    view: Record,
    expected: float | None = None,
) -> Outcome:
    """Train `config` in an empty run folder, on the ledger that already holds what preparing the data cost.

    view: is given every line of metrics, as it is written.
    expected: as for `resolve`.
    Raises: UsageError, ShoestringError (Diverged and NothingTrained among them).
    """
    config = resolve(config, dataset, machine, ledger, expected)
    return begin(config, folder, ledger, dataset, machine, view)


def begin(
    config: RunConfig,
    folder: RunFolder,
    ledger: Ledger,
    dataset: Dataset,
    machine: Machine,
    view: Record,
    participation: Participation | None = None,
) -> Outcome:
    """As `start`, for a configuration that is resolved already.

    folder: the run's, or this worker's own where this process is one of several.
    participation: the place of this process in the run; None: it has all workers.
    """
    folder.write_json("environment.json", environment(machine))
    folder.write_config(config, dataset)
    ledger.write("start")
    session = Session(config, folder, ledger, dataset, view, participation)
    return session.run()


def resume(
    folder: RunFolder,
    config: RunConfig,
    ledger: Ledger,
    dataset: Dataset,
    view: Record,
    step: int | None = None,
    participation: Participation | None = None,
) -> Outcome:
    """Go on exactly from a checkpoint.

    config: the run's, whose data may lie elsewhere now.
    step: of the checkpoint; None: the newest.
    participation: as for `begin`.
    Raises: UsageError when the run has finished; ShoestringError where the data is not what it began with.
    """
    if folder.read_summary().get("stopped") == "finished" and step is None:
        raise UsageError(f"{folder.path} has finished: its budget of {config.budget} is spent")
    origin = folder.read_origin()
    if origin is None:
        log.warning(
            "begun by an earlier version, which kept no copy of the configuration: config.toml is taken as it is"
        )
    elif origin.data:
        require_same_text(origin.data, dataset, config)
    session = Session(config, folder, ledger, dataset, view, participation)
    session.restore(step)
    folder.write_config(config, dataset)
    return session.run()
