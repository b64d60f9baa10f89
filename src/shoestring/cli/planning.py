"""What `plan` and `train` share: their flags, and how a plan is printed."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoestring.budget.machine import Machine
from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import Arguments
from shoestring.config import Tree, overrides
from shoestring.errors import UsageError
from shoestring.launch.request import TrainingRequest, decisions
from shoestring.plan.planner import Plan
from shoestring.train.origin import MOVABLE


def add_noise_scale_flag(parser: Arguments) -> None:
    """The flag that names an earlier run for its critical batch."""
    parser.add_argument(
        "--noise-scale-of",
        type=Path,
        metavar="RUN",
        help="plan the batch by the critical batch that RUN measured (it had --train.noise_scale_every)",
    )


def show_plan(console: Console, request: TrainingRequest, made: Plan, machine: Machine) -> None:
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


def moved_places(words: Sequence[str]) -> Tree:
    """The places that flags name, as in --data.corpus PATH. Raises: UsageError for any other flag."""
    asked = overrides(words)
    for word in words:
        key = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--parallel."):
            continue  # a checkpoint is the same whatever the layout that wrote it
        if word.startswith("--") and re.sub(r"^data\.source\.[^.]+\.corpus$", "data.source", key) not in MOVABLE:
            forbid(
                [word],
                "a resumed run keeps its configuration, its number of workers too (--data.corpus PATH says where its text lies "
                "now); --model.base RUN, without --resume, begins a new one from its weights",
            )
    return asked
