"""Reading a comparison folder: the verdict, the runs behind it, and the configuration of each arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import Row, damaged, read_json, read_lines
from shoestring.report.run_files import read_settings
from shoestring.report.verdict_records import ArmRun, LenientRecord, VerdictRecord


@dataclass(frozen=True)
class Compared:
    """A comparison folder.

    configs: each arm's complete configuration as it was judged, with what tuning chose; the base's first, then in the
    order of `ranked`.
    """

    folder: Path
    name: str
    verdict: VerdictRecord
    runs: list[ArmRun]
    environment: Row
    configs: dict[str, Row]

    def judged(self, arm: str) -> list[ArmRun]:
        """The runs of an arm that the verdict rests on, or that failed on the way to it."""
        return [run for run in self.runs if run.arm == arm and run.purpose == "judge"]


R = TypeVar("R", bound=LenientRecord)


def _record(kind: type[R], value: Any, path: Path, line: int | None = None) -> R:
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        what = f"'{'.'.join(str(part) for part in first['loc'])}': {first['msg']}"
    raise ShoestringError(f"{path} is damaged: {what}") if line is None else damaged(path, line, what)


def read_verdict(folder: Path) -> VerdictRecord:
    """The verdict of a comparison folder. Raises: UsageError when there is none; ShoestringError when it is damaged."""
    path = folder / "verdict.json"
    value = read_json(path, dict, "an object")
    if value is None:
        raise UsageError(f"{folder} is not a comparison: it has no {path.name}")
    verdict = _record(VerdictRecord, value, path)
    for name in (verdict.base, *(name for one in verdict.comparisons for name in (one.candidate, one.base))):
        if name not in verdict.arms:
            raise ShoestringError(f"{path} is damaged: it compares '{name}', which is none of its arms")
    return verdict


def read_arm(folder: Path, name: str) -> Row:
    """The configuration of an arm. Raises: ShoestringError when it is missing or damaged."""
    path = folder / "arms" / f"{name}.toml"
    config = read_settings(path)
    if config is None:
        raise ShoestringError(f"{path} is missing: it is the configuration of the arm '{name}'")
    return config


def _judged_with(config: Row, chosen: Mapping[str, Any]) -> Row:
    """The configuration with the values of these dotted keys."""
    whole = dict(config)
    for key, value in chosen.items():
        section, dot, rest = key.partition(".")
        below = whole.get(section)
        whole[section] = _judged_with(below if isinstance(below, dict) else {}, {rest: value}) if dot else value
    return whole


def _runs(path: Path, arms: Sequence[str]) -> list[ArmRun]:
    if not path.exists():
        raise ShoestringError(f"{path} is missing: it holds the runs that the verdict rests on")
    runs = []
    for line, row in read_lines(path, frozenset()):
        run = _record(ArmRun, row, path, line)
        if run.arm not in arms:
            raise damaged(path, line, f"the verdict has no arm '{run.arm}'")
        runs.append(run)
    return runs


def read_judged_arm(folder: Path, verdict: VerdictRecord, name: str) -> Row:
    """The configuration of an arm with what tuning chose. Raises: ShoestringError when it is missing or damaged."""
    tuning = verdict.arms[name].tuning
    return _judged_with(read_arm(folder, name), (tuning.chosen if tuning else None) or {})


def read_comparison(folder: Path) -> Compared:
    """Everything in a comparison folder.

    Raises: UsageError when `folder` is no comparison; ShoestringError, naming the file, when one is missing or damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"no such comparison: {folder} is not a folder")
    verdict = read_verdict(folder)
    environment = read_json(folder / "environment.json", dict, "an object")
    if environment is None:
        raise ShoestringError(f"{folder / 'environment.json'} is missing: it says where the runs were made")
    names = dict.fromkeys([verdict.base, *(one.candidate for one in verdict.ranked), *verdict.arms])
    return Compared(
        folder=folder,
        name=folder.resolve().name,
        verdict=verdict,
        runs=_runs(folder / "runs.jsonl", list(verdict.arms)),
        environment=environment,
        configs={name: read_judged_arm(folder, verdict, name) for name in names},
    )
