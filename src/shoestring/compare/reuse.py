"""Runs of an earlier comparison that a new one would make again exactly, taken over instead of made."""

import json
import logging
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoestring.budget.machine import Machine
from shoestring.compare.conduct import PlannedRun, Trials
from shoestring.compare.design import Design
from shoestring.compare.folder import ComparisonFolder
from shoestring.compare.recipes import with_settings
from shoestring.compare.record import RunLog, RunRecord
from shoestring.config import to_toml
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import read_json
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import environment

log = logging.getLogger(__name__)


def runs_of(earlier: ComparisonFolder, design: Design, machine: Machine) -> dict[str, RunRecord]:
    """The finished runs of an earlier comparison that `design` could use, by all that decides what a run does.

    Raises: UsageError where the budget is in seconds, since what else the machine did then is no part of a configuration,
    or where the environments differ; ShoestringError where the earlier comparison is damaged.
    """
    if design.unit == "seconds":
        raise UsageError(
            "--runs-of: runs at equal seconds are made side by side, none is taken from another comparison"
        )
    _require_environment(earlier.path, environment(machine))
    arms = earlier.read_arms(earlier.read_design())
    return {
        _whole(arms[record.arm], record.seed, record.settings): record
        for record in RunLog(earlier.records).read()
        if record.complete and record.arm in arms
    }


class Reused:
    """The `Trials` that take the runs that were made before, and have others make the rest.

    A run is the same where its complete configuration is, budget, settings and seed included, whichever arm it was of and
    whether it tuned or was judged there. earlier: as `runs_of` finds them. arms: of the new comparison. taken: those that
    were, so far.
    """

    def __init__(self, make: Trials, earlier: Mapping[str, RunRecord], arms: Mapping[str, RunConfig]) -> None:
        self.make, self.earlier, self.arms = make, earlier, arms
        self.taken: list[RunRecord] = []

    def map(self, asked: Iterable[PlannedRun]) -> Generator[RunRecord, None, None]:
        """As `Trials.map`."""
        left = list[PlannedRun]()
        for one in asked:
            found = self.earlier.get(_whole(self.arms[one.arm], one.seed, one.settings))
            if found is None:
                left.append(one)
                continue
            log.info(f"{one.arm}: taken from the earlier comparison")
            self.taken.append(found)
            yield replace(found, arm=one.arm, settings=dict(one.settings), purpose=one.purpose)
        with closing(self.make.map(left)) as made:
            yield from made


def _whole(config: RunConfig, seed: int, settings: Mapping[str, Any]) -> str:
    """All that decides what a run does."""
    whole = replace(with_settings(config, settings), seed=seed)
    if not whole.train.sample_tokens:  # what is never drawn decides nothing
        whole = replace(whole, train=replace(whole.train, sample=None))
    return to_toml(whole)


def _require_environment(earlier: Path, present: Mapping[str, Any]) -> None:
    path = earlier / "environment.json"
    content = read_json(path, dict, "an object")
    if content is None:
        raise ShoestringError(f"{path} is missing: it says where the runs were made")
    written = json.loads(json.dumps(present))  # as it would be read back
    for section, names in {"packages": ("torch",), "machine": ("device", "name", "features")}.items():
        for name in names:
            there = content.get(section)
            was, now = there.get(name) if isinstance(there, dict) else None, written[section].get(name)
            if was != now:
                raise UsageError(f"--runs-of {earlier}: its runs were made with {name} {was}, here it is {now}")
