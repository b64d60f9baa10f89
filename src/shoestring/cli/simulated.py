"""What a planned run is simulated to take, by itself and divided over workers, for `shoestring plan`."""

import argparse
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from shoestring.budget.machine import Machine
from shoestring.budget.units import parse_amount, show, show_seconds
from shoestring.cli.arguments import Arguments, whole
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.optim.partition import partition
from shoestring.plan.planner import Plan
from shoestring.plan.simulate import OperatorTimes, Simulated, WorkerLayout, WorkerLink, layouts, simulate, trace
from shoestring.train.config import RunConfig

SHOWN = 8
"""Layouts that are shown, the fastest first."""


def link(text: str) -> WorkerLink:
    """'10MB' or '10MB,2ms': bytes a second and seconds of a message. Raises: argparse.ArgumentTypeError, UsageError."""
    rate, _, latency = text.partition(",")
    resource, bandwidth = parse_amount(rate)
    seconds = 0.0
    if latency:
        unit = 1e-3 if latency.strip().endswith("ms") else 1.0
        try:
            seconds = unit * float(latency.strip().removesuffix("ms").removesuffix("s"))
        except ValueError:
            resource = ""
    if resource != "bytes":
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is no link: write it like 12MB,2ms")
    return WorkerLink(bandwidth, seconds)


def add_simulation_flags(parser: Arguments) -> None:
    parser.add_argument(
        "--layouts",
        type=whole(2, 4096),
        metavar="WORKERS",
        help="also simulate every way to divide a step over so many",
    )
    parser.add_argument(
        "--link",
        type=link,
        default=WorkerLink(12.5e6, 1e-3),
        metavar="BYTES[,LATENCY]",
        help="between them: bytes a second and seconds of a message (default 12.5MB,1ms)",
    )


@dataclass(frozen=True)
class Simulation:
    """alone: the plan's step, one worker's part of it. at_once: workers that do theirs at the same time. divided: a step over
    workers, the fastest first. timed: operators that were new."""

    alone: Simulated
    at_once: int
    divided: tuple[Simulated, ...]
    timed: int

    def as_json(self) -> dict[str, Any]:
        return {"step": _described(self.alone), "layouts": [_described(one) for one in self.divided]}


def _described(one: Simulated) -> dict[str, Any]:
    layout = one.layout
    return {
        "data": layout.data,
        "tensor": layout.tensor,
        "stages": layout.stages,
        "micro_batches": layout.micro_batches,
        "seconds": one.seconds,
        "tokens": one.tokens,
        "flops": one.flops,
        "sent": one.sent,
        "memory": one.memory,
        "seconds_by_cause": dict(one.by_cause),
    }


def simulated(
    made: Plan, config: RunConfig, machine: Machine, workers: int | None, between: WorkerLink
) -> Simulation | None:
    """None for a run that is not a new model trained whole: its base and its edits are not traced."""
    model = config.model
    if model.base or config.edits or config.objective.name != "next_token":
        return None
    with outline():
        built = Transformer(model)
    times = OperatorTimes.of(machine)
    before = len(times.known)
    precision = config.execution.precision if config.execution.precision != "auto" else machine.best_precision
    rows = max(1, config.train.batch // config.workers)
    micro = min(config.train.micro_batch or rows, rows)
    claimed = partition(built, config.optim, config.fallback).build()
    given: dict[str, Any] = {
        "context": model.context,
        "precision": precision,
        "update_flops": claimed.step_flops(),
    }
    one = trace(built, micro, model.context, precision=precision, device=machine.device)
    alone = simulate(
        built, machine, times, rows=rows, layout=WorkerLayout(micro_batches=rows // micro), traced=one, **given
    )
    divided = [
        simulate(built, machine, times, rows=config.train.batch, layout=layout, link=between, **given)
        for layout in layouts(
            workers or 1, layers=model.layers, heads=model.heads, rows=config.train.batch, micro_batches=4
        )
        if layout.workers > 1
    ]
    divided.sort(key=lambda found: found.seconds)
    at_once = 1 if config.transport == "local" else config.workers
    return Simulation(alone, at_once, tuple(divided), len(times.known) - before)


def say_simulated(console: Console, made: Plan, found: Simulation) -> None:
    """Print the simulated rate beside the plan's own, and the layouts."""
    rate = found.at_once / found.alone.per_token
    how = "measured" if made.pace.measured else "by rule"
    beside = f"{rate * made.pace.per_token:.2f} of the rate {how}"
    new = f"; {found.timed} operators timed for it" if found.timed else ""
    console.print(
        f"simulated from its operators, one by one: {rate:,.0f} tok/s, {beside}{new}", highlight=False, soft_wrap=True
    )
    if not found.divided:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("layout", "a step", "tok/s", "a worker sends", "and holds", "most time goes on"):
        table.add_column(column, overflow="fold")
    for one in found.divided[:SHOWN]:
        most = max(one.by_cause, key=lambda cause: one.by_cause[cause])
        table.add_row(
            str(one.layout),
            show_seconds(one.seconds),
            f"{1 / one.per_token:,.0f}",
            show("bytes", one.sent),
            show("bytes", one.memory),
            f"{most}, {one.by_cause[most] / one.seconds:.0%}",
        )
    console.print(table)
