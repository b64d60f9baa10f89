"""`shoestring plan --devices N --gpu NAME`: the layouts of several devices, ranked, without a corpus and without the devices."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.table import Table

from shoestring.budget.units import show, show_seconds
from shoestring.cli.json_output import print_json
from shoestring.cli.screen import Screen
from shoestring.config import Choice, Tree, as_flag, build, merge, overrides, read_toml
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.parallel.layout import ParallelLayout
from shoestring.plan.parallel_layouts import DEVICES, PredictedStep, StateBytes, best_of_each, ranked
from shoestring.train.base import with_base

SHOWN = 12
"""Layouts that are shown."""

VOCABULARY = 32_000
"""Of a model whose recipe leaves it to the tokenizer."""


def plan_layouts(recipe: Path | None, words: Sequence[str], devices: int, gpu: str, as_json: bool) -> int:
    """Show how `[parallel]` may train a recipe's model on so many devices, the best first.

    Raises: UsageError where the model is left open, the device is unknown, or nothing fits.
    """
    asked = merge(read_toml(recipe) if recipe else {}, overrides(words))
    config, notes = _model(asked)
    batch = int(asked.get("train", {}).get("batch", 8 * devices))
    if "batch" not in asked.get("train", {}):
        notes.append(f"train.batch is open: {batch} sequences, 8 for each device, are planned for")
    given = {key: value for key, value in asked.get("parallel", {}).items() if key in ("context", "precision")}
    layout = build(ParallelLayout, given, as_flag)
    steps = ranked(config, devices, gpu, batch, _state(asked), layout.context, layout.precision)
    best = best_of_each(steps)
    if as_json:
        found = [{**asdict(each), "placement": asdict(each.placement)} for each in best]
        print_json({"devices": devices, "gpu": DEVICES[gpu], "batch": batch, "layouts": found, "notes": notes})
        return 0
    console = Screen()
    axes = ["data", "fsdp", "tensor"]
    axes += [axis for axis in ("context", "expert") if any(getattr(each.placement.layout, axis) > 1 for each in best)]
    table = Table(*axes, "checkpointing", "at once", "share of peak", "memory", "a step")
    for each in best[:SHOWN]:
        table.add_row(*_cells(each, axes))
    console.print(table)
    for note in [*notes, f"predicted from the data sheet of {gpu}, not measured; docs/parallel.md says how"]:
        console.print(f"note: {note}", soft_wrap=True)
    return 0


def _cells(step: PredictedStep, axes: Sequence[str]) -> list[str]:
    layout = step.placement.layout
    sizes = [str(getattr(layout, axis)) for axis in axes]
    seconds = show_seconds(sum(step.seconds.values()))
    kept = f"{step.share:.0%}", show("bytes", step.memory), seconds
    return [*sizes, layout.checkpointing, str(step.placement.micro_batch), *kept]


def _model(asked: Tree) -> tuple[ModelConfig, list[str]]:
    """(the recipe's model, what was assumed of it)."""
    if asked.get("model", {}).get("base"):
        asked = with_base(asked)
    model, notes = dict(asked.get("model", {})), []
    lacking = [key for key in ("layers", "width", "heads", "context") if key not in model]
    if lacking:
        raise UsageError(
            f"which model? its {', '.join(lacking)} are open: give --model.{lacking[0]} and so on, a recipe that has them, or "
            "--model.base PLACE"
        )
    if not model.get("vocabulary"):
        model["vocabulary"] = VOCABULARY
        notes.append(f"model.vocabulary is open: {VOCABULARY:,} tokens are planned for")
    return build(ModelConfig, model, as_flag), notes


def _state(asked: Tree) -> StateBytes:
    """Bytes a parameter of the recipe's optimiser, of which most parameters are matrices'; where it sees whole matrices, their
    owner keeps their weights once more."""
    given = asked.get("optim", "adamw")
    name = given if isinstance(given, str) else str(given.get("name", "adamw"))
    target = Choice.of("optim", name).card.target
    matrix = torch.empty(1024, 1024, device="meta")
    kept = target.state_bytes([matrix]) / matrix.numel()  # type: ignore[attr-defined]
    return StateBytes(optimizer=kept + (0 if getattr(target, "elementwise", False) else 4))
