"""What earlier runs say of a plan, on the screen: the loss to expect, the next-best sizes, the run that would narrow it most."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from shoestring.budget.machine import Machine, cache_folder
from shoestring.budget.units import show
from shoestring.config import tree
from shoestring.data.dataset import Dataset
from shoestring.errors import UsageError
from shoestring.launch.request import TrainingRequest, planned
from shoestring.plan import rules
from shoestring.plan.memory import known, learn
from shoestring.plan.outlook import outlook
from shoestring.plan.pace import Paces
from shoestring.plan.planner import Plan, flops_per_token, paces_for, parameters
from shoestring.plan.runs_table import text_key
from shoestring.train.config import RunConfig

log = logging.getLogger(__name__)

CHEAP = 0.1
"""Share of a plan's FLOPs that a run to learn from may take."""


def store() -> Path:
    """Where the runs that plans have learned from are kept."""
    return cache_folder() / "learned-runs.jsonl"


def learned(folders: Sequence[Path]) -> None:
    """Keep these folders' runs for this plan and later ones."""
    count = learn(folders, store())
    log.info(f"{count} runs are kept for plans, in {store()}")


def say_outlook(
    console: Console, request: TrainingRequest, machine: Machine, dataset: Dataset, made: Plan, config: RunConfig
) -> None:
    """Print what the kept runs on this text say; a line where they are too few, nothing where there is none."""
    table = known(store(), text_key(tree(config)))
    if table is None:
        return
    neighbours = _neighbours(request, machine, dataset, made, config)
    cheap = _cheap(config, made)
    rows = [{"parameters": float(one.parameters), "tokens": one.tokens} for one in (made, *neighbours)]
    try:
        found = outlook(table, rows, cheap)
    except UsageError as error:
        console.print(f"no loss is predicted: {error}", highlight=False, soft_wrap=True)
        return
    own, *others = found.expected
    console.print(
        f"expected held-out loss {own.value:.3f}, {own.low:.3f} to {own.high:.3f} in nine of ten cases, by {found.law.law.formula} "
        f"fitted to {len(table)} runs",
        highlight=False,
        soft_wrap=True,
    )
    for other, said in sorted(zip(neighbours, others, strict=True), key=lambda pair: pair[1].value):
        console.print(
            f"next best: {other.parameters / 1e6:.2f} M parameters, {show('tokens', other.tokens)}: {said.value:.3f}, "
            f"{said.low:.3f} to {said.high:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    if found.narrowing is not None and found.narrowed < 0.99:
        run = cheap[found.narrowing]
        console.print(
            f"a run of {run['parameters'] / 1e6:.2f} M parameters on {show('tokens', run['tokens'])} would narrow this most, to "
            f"{found.narrowed:.0%} of its width, for {CHEAP:.0%} of the compute",
            highlight=False,
            soft_wrap=True,
        )
    for doubt in found.law.doubts:
        console.print(f"note: {doubt}", highlight=False, style="yellow", soft_wrap=True)


def _paces(request: TrainingRequest, machine: Machine, made: Plan, config: RunConfig) -> Paces:
    paces = paces_for(machine, request.budget, request.asked, request.at_once)
    if made.pace.measured:
        paces.add(config.model, flops_per_token(config.model), made.pace)
    return paces


def _neighbours(
    request: TrainingRequest, machine: Machine, dataset: Dataset, made: Plan, config: RunConfig
) -> list[Plan]:
    """The same budget with the rung of the ladder before, and with that after; none where the size is given."""
    sizes = [(shape.layers, shape.width) for shape in rules.LADDER]
    own = (config.model.layers, config.model.width)
    if own not in sizes or config.model.base:
        return []
    found = []
    for at in (sizes.index(own) - 1, sizes.index(own) + 1):
        if not 0 <= at < len(sizes):
            continue
        shape = rules.LADDER[at]
        model = {"layers": shape.layers, "width": shape.width, "heads": shape.width // shape.head_width}
        try:
            other, _ = planned(request, machine, dataset, 0.0, _paces(request, machine, made, config), model)
        except UsageError:
            continue  # it does not fit the budget or the memory
        if other.parameters != made.parameters:
            found.append(other)
    return found


def _cheap(config: RunConfig, made: Plan) -> list[dict[str, float]]:
    """Runs for a share of the plan's compute, of the sizes of the ladder up to the plan's own."""
    found = []
    for shape in rules.LADDER:
        if config.model.base or shape.width * shape.layers > config.model.width * config.model.layers:
            continue
        try:
            model = replace(config.model, layers=shape.layers, width=shape.width, heads=shape.width // shape.head_width)
        except ValueError:
            continue  # a pattern or a span names layers that so small a model has not
        tokens = CHEAP * made.flops / flops_per_token(model)
        if math.isfinite(tokens):
            found.append({"parameters": float(parameters(model)), "tokens": tokens})
    return found
