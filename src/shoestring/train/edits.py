"""The edits of a run: decided once, kept in its folder, applied whenever its model is built."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from shoestring import atomic
from shoestring.config import Choice
from shoestring.contract.edit import Decision, Edit, Evidence, Switched
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import read_json
from shoestring.lowbit.convert import grouped, lowered, lowered_layers
from shoestring.schedule.progress import Schedule
from shoestring.schedule.quantise.rule import Extent

FOLDER = "edits"

Decide = Callable[[int, str, Edit, LanguageModule, Evidence], Decision]
"""Has an edit decide: its place and name among the run's edits, the edit, the model as it is by then, and what it may look at."""


@dataclass(frozen=True)
class Applied:
    """An edit of a run's model.

    name: of its method.
    decision: what it decided.
    """

    name: str
    edit: Edit
    decision: Decision


@dataclass(frozen=True)
class Switch:
    """When an edit begins to take effect while training.

    start: share of the budget.
    """

    edit: Switched
    start: float


def decide_here(place: int, name: str, edit: Edit, model: LanguageModule, evidence: Evidence) -> Decision:
    """What an edit decides. place, name: of it among the run's."""
    return edit.decide(model, evidence)


def apply_edits(
    model: LanguageModule,
    edits: Sequence[Choice],
    evidence: Evidence,
    decisions: Sequence[Decision] | None,
    decide: Decide = decide_here,
) -> tuple[LanguageModule, list[Applied]]:
    """(the model with all edits applied in order, what was applied). The model may be changed in place.

    decisions: of each edit, from the run's folder; None: each edit decides, by `evidence`.
    decide: has it done, where it is not done before.
    Raises: UsageError where an edit does not fit the model.
    """
    done: list[Applied] = []
    for place, choice in enumerate(edits):
        edit: Edit = choice.build()
        decision = decide(place, choice.name, edit, model, evidence) if decisions is None else decisions[place]
        try:
            model = edit.apply(model, decision)
        except (KeyError, AttributeError, TypeError, RuntimeError) as error:
            if decisions is None:
                raise
            raise ShoestringError(
                f"what was decided for the edit '{choice.name}' does not fit this model: {error}"
            ) from None
        done.append(Applied(choice.name, edit, decision))
    model.changed()
    return model, done


def fold_edits(model: LanguageModule, applied: Sequence[Applied]) -> LanguageModule:
    """The model of plain layers that computes the same. Raises: UsageError where an edit has none."""
    for one in reversed(applied):
        model = one.edit.fold(model)
    model.changed()
    return model


def describe(model: LanguageModule, applied: Sequence[Applied]) -> str:
    """What was edited, a line or a few for each."""
    return "\n".join(one.edit.describe(model, one.decision) for one in applied)


def write_decisions(folder: Path, applied: Sequence[Applied]) -> None:
    """Keep what was decided."""
    for place, one in enumerate(applied):
        write_decision(folder, place, one.name, one.decision)


def write_decision(folder: Path, place: int, name: str, decision: Decision) -> None:
    """Keep what an edit decided: FOLDER/000-name.json, and 000-name.safetensors beside it where there are tensors."""
    path = _path(folder, place, name)
    path.parent.mkdir(exist_ok=True)
    if decision.tensors:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in decision.tensors.items()}
        atomic.write_bytes(path.with_suffix(".safetensors"), save(tensors))
    # last: with it the decision is there
    content = {"edit": name, "tensors": bool(decision.tensors), "values": dict(decision.values)}
    atomic.write_text(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")


def read_decisions(folder: Path, edits: Sequence[Choice]) -> list[Decision] | None:
    """What was decided for these edits; None where nothing was kept yet. Raises: ShoestringError where it is damaged."""
    paths = [_path(folder, place, choice.name) for place, choice in enumerate(edits)]
    if not edits or not all(path.with_suffix(".json").is_file() for path in paths):
        return None
    return [read_decision(folder, place, choice.name) for place, choice in enumerate(edits)]


def read_decision(folder: Path, place: int, name: str) -> Decision:
    """What `write_decision` kept. Raises: ShoestringError where it is damaged."""
    path = _path(folder, place, name)
    content = read_json(path.with_suffix(".json"), dict, "what an edit decided") or {}
    if not isinstance(content.get("values"), dict):
        raise ShoestringError(f"{path.with_suffix('.json')} is damaged: it has no 'values'")
    tensors: dict[str, Any] = {}
    if content.get("tensors"):
        try:
            tensors = load_file(path.with_suffix(".safetensors"))
        except (OSError, SafetensorError) as error:
            raise ShoestringError(f"{path.with_suffix('.safetensors')} cannot be read: {error}") from None
    return Decision(content["values"], tensors)


def _path(folder: Path, place: int, name: str) -> Path:
    return folder / FOLDER / f"{place:03d}-{name}"


def needs(edits: Sequence[Choice]) -> frozenset[str]:
    """What the edits look at to decide."""
    return frozenset().union(*(choice.build().needs for choice in edits))


def with_planned_tokens(edits: Sequence[Choice], tokens: float) -> tuple[Choice, ...]:
    """The edits, complete: a rule that must know the tokens of the run, and was not told, is told those planned."""
    made = []
    for choice in edits:
        active = choice.options.get("active")
        if isinstance(active, dict) and active.get("tokens") == 0:
            choice = choice.with_options(active={**active, "tokens": tokens})
        made.append(choice)
    return tuple(made)


def join_schedule(
    schedule: Schedule, applied: Sequence[Applied], model: LanguageModule, tokens: float
) -> tuple[Schedule, list[Switch], str]:
    """(the schedule as the edits want it, when each begins to take effect, that in lines).

    tokens: of the run; 0: not known. Raises: UsageError where a rule must know what is not known.
    """
    switches, said = [], []
    for one in applied:
        if not isinstance(one.edit, Switched):
            continue
        rule = one.edit.active.build()
        start = rule.start(Extent(sum(p.numel() for p in model.parameters()), tokens, one.edit.bits))
        schedule = rule.joined(schedule, start)
        switches.append(Switch(one.edit, start))
        said.append(_said(one.edit.active, start))
    if len(switches) > 1:
        raise UsageError("two edits train for a number format each: give one of them")
    return schedule, switches, "\n".join(said)


def _said(active: Choice, start: float) -> str:
    if start == 0:
        return "quantised from the first step on"
    fused = ", while the learning rate decays" if active.options.get("fused") else ""
    return f"quantised over the last {1 - start:.1%} of the budget{fused}; in full precision before that"


def stated(model: LanguageModule) -> dict[str, Any]:
    """What is quantised, for the summary of a run: empty for a model in full precision.

    lowered, kept: the names of the matrices that are and of those that stay in higher precision, as the run said them.
    """
    first = next(lowered_layers(model), None)
    if first is None:
        return {}
    found = lowered(model)
    about = {"format": str(first.format), "activations": first.activations}
    counts = {"matrices": len(found.lowered), "weights": found.weights}
    return {"lowbit": {**about, **counts, "lowered": grouped(found.lowered), "kept": grouped(found.kept)}}
