"""What `plan` and `train` share: recipe and flags laid over the plan for a budget."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import Ledger, peak_memory
from shoestring.budget.machine import Machine, cache_folder
from shoestring.budget.units import parse_memory, show, show_seconds
from shoestring.cli.arguments import Arguments
from shoestring.config import Tree, as_flag, build, merge, overrides, read_toml
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset, require
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import is_number
from shoestring.plan.pace import Paces
from shoestring.plan.planner import Plan, flops_per_token, paces_for, plan
from shoestring.train.base import with_base
from shoestring.train.config import RunConfig
from shoestring.train.execution import require_device
from shoestring.train.run_folder import RunFolder
from shoestring.train.starting import with_start
from shoestring.train.trial import allowed, try_out

DEFAULT_BUDGET = "2m"
TRIALS = 3
"""Shapes that are tried out at most for one plan."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What was asked for: the plain values of recipe and flags, flags on top. critical_batch: tokens, as measured in an
    earlier run, or None. workers, transport: as in the configuration."""

    asked: Tree
    budget: Budget
    critical_batch: float | None = None
    workers: int = 1
    transport: str = "distributed"

    @classmethod
    def read(
        cls,
        recipe: Path | None,
        words: Sequence[str],
        noise_scale_of: Path | None = None,
        *,
        processes: int | None = None,
    ) -> "Request":
        """Check what can be checked before any work: names of keys, values, budget. Raises: UsageError.

        noise_scale_of: an earlier run whose critical batch the plan heeds. processes: how many were started for the run, each
        to be a worker, which need not be asked for then; None where the run starts its own.
        """
        asked = merge(read_toml(recipe) if recipe else {}, overrides(words))
        if processes is not None:
            asked.setdefault("workers", processes)
        asked.setdefault("budget", DEFAULT_BUDGET)
        # the batch is for the plan to choose: here it must not stand in the way of any number of workers
        config = build(RunConfig, merge({"model": {}, "train": {"batch": asked.get("workers", 1)}}, asked), as_flag)
        require_device(config.execution)
        if config.start.run:
            asked = with_start(asked, config.start)
        if config.model.base:
            asked = with_base(asked)
        critical = critical_batch(noise_scale_of) if noise_scale_of else None
        return cls(asked, config.budget, critical, config.workers, config.transport)

    @property
    def at_once(self) -> int:
        """Workers that compute at the same time, each with the cores that one has."""
        return 1 if self.transport == "local" else self.workers

    def data(self) -> DataConfig:
        return build(DataConfig, self.asked.get("data", {}))


def add_noise_scale_flag(parser: Arguments) -> None:
    """The flag that names an earlier run for its critical batch."""
    parser.add_argument(
        "--noise-scale-of",
        type=Path,
        metavar="RUN",
        help="plan the batch by the critical batch that RUN measured (it had --train.noise_scale_every)",
    )


def critical_batch(run: Path) -> float:
    """The critical batch in tokens that a finished run measured. Raises: UsageError where it did not."""
    summary = RunFolder.open(run).read_summary()
    found = summary.get("critical_batch")
    if not found:
        raise UsageError(
            f"{run} has measured no critical batch: train with --train.noise_scale_every 5 and a --train.micro_batch below "
            "the batch, for long enough"
        )
    if not is_number(found):
        raise ShoestringError(f"{run / 'summary.json'} is damaged: 'critical_batch' is not a number")
    return float(found)


def prepared(request: Request, clock: AbstractContextManager[None], say: Say) -> Dataset:
    """The request's corpus, its time on the clock."""
    with clock:
        dataset = prepare(request.data(), cache_folder(), say=say)
        require(dataset, int(request.asked.get("model", {}).get("context", 1)))
    return dataset


def planned(
    request: Request,
    machine: Machine,
    dataset: Dataset,
    seconds_spent: float,
    paces: Paces | None = None,
    shape: Tree | None = None,
) -> tuple[Plan, RunConfig]:
    """The plan for what the request leaves open, and the complete configuration. paces: what was measured. shape: of the
    model, where it is settled although the request leaves it open."""
    memory = request.asked.get("memory")
    made = plan(
        request.budget,
        machine,
        workers=request.workers,
        at_once=request.at_once,
        corpus_tokens=len(dataset.train),
        vocabulary=dataset.tokenizer.vocabulary,
        fixed=merge({"model": shape or {}}, request.asked),
        memory=parse_memory(memory) if memory else None,
        seconds_spent=seconds_spent,
        critical_batch=request.critical_batch,
        paces=paces,
        heldout_tokens=len(dataset.heldout),
        held=peak_memory(),
    )
    config = build(RunConfig, merge(made.tree(), request.asked), as_flag)
    require(dataset, config.model.context)
    return made, config


def tried(request: Request, machine: Machine, dataset: Dataset, ledger: Ledger, say: Say) -> tuple[Plan, RunConfig]:
    """As `planned`, by the pace of a few steps of the planned shape where the run is long enough for that: with another pace
    another shape may be the one to plan, which is tried then too."""
    paces = paces_for(machine, request.budget, request.asked, request.at_once)
    for _ in range(TRIALS):
        made, config = planned(request, machine, dataset, ledger.totals.wall_clock, paces)
        if request.workers > 1 or paces.knows(config.model):
            return made, config
        left = made.seconds if request.budget.seconds is None else request.budget.seconds - ledger.totals.wall_clock
        used = ledger.totals.seconds.get("measure", 0.0)
        seconds = allowed(request.budget.seconds, made.seconds, left, used)
        pace = try_out(config, dataset, machine, ledger, seconds, made.seconds, say)
        if pace is None:
            return made, config
        paces.add(config.model, flops_per_token(config.model), pace)
    # between shapes that call for each other, the last one tried out it is
    shape = {key: getattr(config.model, key) for key in ("layers", "width", "heads", "context")}
    made, config = planned(request, machine, dataset, ledger.totals.wall_clock, paces, shape)
    first, *others = made.decisions
    return replace(
        made, decisions=(replace(first, reason=f"{first.reason}, the last of {TRIALS} tried out"), *others)
    ), config


def _given(asked: Mapping[str, Any], key: str) -> bool:
    branch: Any = asked
    for part in key.split("."):
        if not isinstance(branch, Mapping) or part not in branch:
            return False
        branch = branch[part]
    return True


def decisions(request: Request, made: Plan) -> list[dict[str, Any]]:
    """The plan's decisions for the run's folder, those the user made marked as such."""
    rows = [asdict(decision) for decision in made.decisions if not _given(request.asked, decision.key)]
    return json.loads(json.dumps(rows))


def show_plan(console: Console, request: Request, made: Plan, machine: Machine) -> None:
    """Print the machine, every decision with its reason, what binds, and the cost expected."""
    peak = machine.matmul[machine.best_precision]
    console.print(
        Text.assemble(
            (machine.name, "bold"),
            f", {machine.threads} threads: {peak / 1e9:,.0f} GFLOP/s in {machine.best_precision}, "
            f"{machine.bandwidth / 1e9:.0f} GB/s",
        ),
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("choice", "value", "reason"):
        table.add_column(column, overflow="fold", no_wrap=column != "reason")
    for row in decisions(request, made):
        table.add_row(row["key"], str(row["value"]), row["reason"])
    console.print(table)
    console.print(
        f"bound by {made.binding} ({request.budget}); expected: {show_seconds(made.seconds)}, "
        f"{show('tokens', made.tokens)} in {made.steps:,.0f} steps, {show('flops', made.flops)}, "
        f"{show('bytes', made.memory)} of memory at most",
        highlight=False,
        soft_wrap=True,
    )
    rate = f"{1 / made.pace.per_token:,.0f} tok/s"
    how = f"{rate}, measured on steps of this shape" if made.pace.measured else f"{rate}, by rule and not measured"
    beside = ", ".join(f"{show_seconds(took)} {what}" for what, took in made.beside.items() if took >= 0.05)
    console.print(f"at {how}; beside the steps: {beside or 'nothing much'}", highlight=False, soft_wrap=True)
    for warning in made.warnings:
        console.print(f"note: {warning}", highlight=False, style="yellow")


def forbid(words: Sequence[str], why: str) -> None:
    if words:
        raise UsageError(f"{words[0]}: {why}")
