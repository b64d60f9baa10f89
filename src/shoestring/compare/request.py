"""The arms of a comparison, complete: what each recipe leaves open is planned, or taken from the base, and measured."""

import logging
import tempfile
from collections.abc import Mapping, Sized
from dataclasses import replace
from pathlib import Path

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine
from shoestring.compare.recipes import candidate, check_workers, for_judging
from shoestring.config import Tree
from shoestring.data.dataset import Dataset
from shoestring.errors import UsageError
from shoestring.launch.request import TrainingRequest, planned, prepared
from shoestring.log_lines import held_back
from shoestring.train.config import RunConfig
from shoestring.train.edits import with_planned_tokens
from shoestring.train.starting import resolve

log = logging.getLogger(__name__)


def require_two(recipes: Sized) -> None:
    """Raises: UsageError where there are fewer recipes than a base and a candidate."""
    if len(recipes) < 2:
        raise UsageError("a comparison needs two recipes or more: give the base first, then the candidates")


def planned_arms(asked: Mapping[str, Tree], machine: Machine) -> dict[str, RunConfig]:
    """Complete configurations by the names of arms, nothing left to decide.

    asked: plain values, as in a recipe, by name; the base first.
    machine: this one.
    Raises: UsageError.
    """
    require_two(asked)
    names, trees = list(asked), list(asked.values())
    request = TrainingRequest.of(trees[0])
    with tempfile.TemporaryDirectory() as scratch:
        ledger = Ledger(Path(scratch) / "ledger.jsonl")  # what is decided before the first run is on nobody's account
        dataset = prepared(request, ledger.clock("data"))
        made, base = planned(request, machine, dataset, 0.0)
        configs = [
            replace(each, edits=with_planned_tokens(each.edits, made.tokens))
            for each in (base, *(candidate(base, tree) for tree in trees[1:]))
        ]
        check_workers(dict(zip(names, configs, strict=True)))  # before anything is measured
        return {
            name: _resolved(name, config, base, dataset, machine, ledger)
            for name, config in zip(names, configs, strict=True)
        }


def _resolved(
    name: str, config: RunConfig, base: RunConfig, dataset: Dataset, machine: Machine, ledger: Ledger
) -> RunConfig:
    """The arm with nothing left open: what is measured to decide is measured before any arm's clock runs."""
    if config.data.text_alone != base.data.text_alone:
        raise UsageError(
            f"{name} asks for other data than the base: arms are judged on the same held-out text, and may differ in data.mixture, "
            "data.rows, data.length, data.selection and data.interventions"
        )
    with held_back("shoestring.train"):  # one line an arm tells what was decided
        resolved = resolve(for_judging(config), dataset, machine, ledger)
    way = resolved.execution
    compiled = "compiled" if way.compile == "blocks" else "not compiled"
    log.info(f"{name}: {resolved.optim.name}, {resolved.schedule.name}, {way.precision}, {compiled}")
    return resolved
