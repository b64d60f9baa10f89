"""Runs of an earlier comparison that a new one would make again exactly, taken over instead of made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoestring.budget.machine import Machine
from shoestring.compare.design import Design
from shoestring.compare.folder import ComparisonFolder
from shoestring.compare.record import RunLog, RunRecord, settings_text
from shoestring.errors import ShoestringError, UsageError
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import environment


def reusable(
    earlier: ComparisonFolder, design: Design, arms: Mapping[str, RunConfig], machine: Machine
) -> list[RunRecord]:
    """The runs of `earlier` that `design` asks for too: of an arm with the same complete configuration, and so the same
    budget, tuned by the same trials, with the same seed, under the same version of torch on the same kind of machine.

    Raises: UsageError where the budget is in seconds, since what else the machine did then is no part of a
    configuration, or where the environments differ; ShoestringError where `earlier` is damaged.
    """
    if design.unit == "seconds":
        raise UsageError(
            "--runs-of: runs at equal seconds are made side by side, none is taken from another comparison"
        )
    _require_environment(earlier.path, environment(machine))
    before = earlier.read_design()
    then = earlier.read_arms(before)
    alike = {
        arm for arm, config in arms.items() if then.get(arm) == config and _tuned(before, arm) == _tuned(design, arm)
    }
    taken = (record for record in RunLog(earlier.records).read() if record.arm in alike and record.complete)
    return [record for record in taken if record.purpose == "tune" or record.seed in design.all_seeds]


def _tuned(design: Design, arm: str) -> tuple[int, list[str]]:
    """What an arm's settings are chosen by: only with the same trials are the settings of its judged runs the same."""
    return design.tuning_seed, [settings_text(settings) for settings in design.trials(arm)]


def _require_environment(earlier: Path, present: Mapping[str, Any]) -> None:
    path = earlier / "environment.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ShoestringError(f"{path} cannot be read: {error}") from None
    written = json.loads(json.dumps(present))  # as it would be read back
    for section, names in {"packages": ("torch",), "machine": ("device", "name", "features")}.items():
        for name in names:
            was, now = content.get(section, {}).get(name), written[section].get(name)
            if was != now:
                raise UsageError(f"--runs-of {earlier}: its runs were made with {name} {was}, here it is {now}")
