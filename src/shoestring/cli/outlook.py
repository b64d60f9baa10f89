"""What earlier runs say of a plan, on the screen: the loss to expect, the next-best sizes, the run that would narrow it most."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from shoestring.budget.machine import Machine
from shoestring.budget.units import show
from shoestring.data.dataset import Dataset
from shoestring.errors import UsageError
from shoestring.launch.request import TrainingRequest, planned, text_of_request
from shoestring.plan import rules
from shoestring.plan.law import Fitted, Prediction
from shoestring.plan.memory import known, learn, learned_runs
from shoestring.plan.outlook import narrowest, outlook
from shoestring.plan.pace import Paces
from shoestring.plan.planner import Plan, paces_for
from shoestring.plan.search import Search
from shoestring.plan.sizes import flops_per_token, parameters
from shoestring.train.config import RunConfig

log = logging.getLogger(__name__)

CHEAP = 0.1
"""Share of a plan's FLOPs that a run to learn from may take."""


def learned(folders: Sequence[Path]) -> None:
    """Keep these folders' runs for this plan and later ones."""
    count = learn(folders, learned_runs())
    log.info(f"{count} runs are kept for plans, in {learned_runs()}")


def say_outlook(
    console: Console, request: TrainingRequest, machine: Machine, dataset: Dataset, made: Plan, config: RunConfig
) -> None:
    """Print what the kept runs on this text say; a line where they are too few, nothing where there is none."""
    if made.searched is not None:
        _say_search(console, made, made.searched, config)
        return
    table = known(learned_runs(), text_of_request(request, dataset))
    if table is None:
        return
    neighbours = _neighbours(request, machine, dataset, made, config)
    cheap = _cheap(config, made)
    rows = [{"parameters": float(one.parameters), "tokens": one.tokens} for one in (made, *neighbours)]
    try:
        found = outlook(table, rows, cheap)
    except UsageError as error:
        _say(console, f"no loss is predicted: {error}")
        return
    own, *others = found.expected
    _say_expected(console, own, found.law, len(table))
    for other, said in sorted(zip(neighbours, others, strict=True), key=lambda pair: pair[1].value):
        _say_next(console, other.parameters, other.tokens, said)
    if found.narrowing is not None:
        _say_narrowing(console, cheap[found.narrowing], found.narrowed)
    _say_doubts(console, found.law)


def _say_search(console: Console, made: Plan, searched: Search, config: RunConfig) -> None:
    """The same of a plan that a law made: its runs-up are the best of all sizes."""
    law, expected = searched.law, searched.best.expected
    if made.foreign:
        beside = ", ".join(one.option.name for one in searched.next_best)
        _say(console, f"no loss is predicted: the law is of other text; next best: {beside or 'none'}")
        return
    _say_expected(console, expected, law, len(law.rows))
    for one in searched.next_best:
        _say_next(console, one.option.parameters, one.option.tokens, one.expected)
    cheap = _cheap(config, made)
    if cheap:
        best, left = narrowest(law, searched.best.option.row(), cheap)
        _say_narrowing(console, cheap[best], left)
    _say_doubts(console, law)


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, highlight=False, soft_wrap=True, style=style)


def _say_expected(console: Console, own: Prediction, law: Fitted, runs: int) -> None:
    interval = f"{own.low:.3f} to {own.high:.3f} in nine of ten cases"
    _say(console, f"expected held-out loss {own.value:.3f}, {interval}, by {law.law.formula} fitted to {runs} runs")


def _say_next(console: Console, parameters: int, tokens: float, said: Prediction) -> None:
    what = f"{parameters / 1e6:.2f} M parameters, {show('tokens', tokens)}"
    _say(console, f"next best: {what}: {said.value:.3f}, {said.low:.3f} to {said.high:.3f}")


def _say_narrowing(console: Console, run: Mapping[str, float], left: float) -> None:
    if left < 0.99:
        what = f"{run['parameters'] / 1e6:.2f} M parameters on {show('tokens', run['tokens'])}"
        _say(
            console,
            f"a run of {what} would narrow this most, to {left:.0%} of its width, for {CHEAP:.0%} of the compute",
        )


def _say_doubts(console: Console, law: Fitted) -> None:
    for doubt in law.doubts:
        _say(console, f"note: {doubt}", "yellow")


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
