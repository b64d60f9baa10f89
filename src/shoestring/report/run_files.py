"""Reading a run folder: what the files say, of a run that finished, is still going on, or was killed."""

import math
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shoestring.budget.budget import Budget
from shoestring.budget.goodput import lost_seconds
from shoestring.budget.ledger import Totals
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import Row, check_numbers, damaged, read_file, read_json, read_lines
from shoestring.report.processes import RunProcesses, read_processes

_COMMON = {"step", "progress", "seconds", "flops", "tokens", "loss"}
_METRICS = _COMMON | {
    "learning_rate_factor",
    "gradient_norm",
    "gradient_norm_1",
    "tokens_per_second",
    "bits_per_byte",
    "targets",
}
_LEDGER = {"at", "flops", "tokens", "discarded", "flops_discarded", "sent", "received", "peak_memory"}
_SUMMARY = {"heldout_loss", "bits_per_byte", "steps", "tokens", "seconds", "flops", "parameters"}


@dataclass(frozen=True)
class Run:
    """What a run folder holds. name: as shown. train, heldout: the lines of metrics.jsonl by kind, in order of steps.

    totals: sums over the ledger. resumed: how often. summary: None unless the run has ended. limits: the budget by
    resource, in base units. cards: those of curated corpora, by source. processes: of which there are timelines, where
    several worked. lost: seconds by cause of steps that were lost.
    """

    folder: Path
    name: str
    config: Row
    environment: Row
    train: list[Row]
    heldout: list[Row]
    totals: Totals
    resumed: int
    samples: list[Row]
    summary: Row | None
    limits: dict[str, float]
    decisions: list[Row]
    cards: Row = field(default_factory=dict)
    processes: RunProcesses = field(default_factory=RunProcesses)
    lost: dict[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> Row:
        """The summary, or nothing where there is none yet."""
        return self.summary or {}


def column(rows: Sequence[Row], key: str) -> np.ndarray:
    """The numbers under `key` as float64 [rows]; NaN where a line has none."""
    return np.array([math.nan if row.get(key) is None else row[key] for row in rows], dtype=np.float64)


def _latest(rows: Sequence[tuple[int, Row]], kind: str) -> list[Row]:
    """The rows of a kind in order of steps: where a resumed run did a step again, the last time counts."""
    kept: list[Row] = []
    for _, row in rows:
        if row.get("kind") != kind:
            continue
        step = row.get("step")
        while step is not None and kept and (kept[-1].get("step") or 0) >= step:
            kept.pop()
        kept.append(row)
    return kept


def _totals(path: Path, rows: Sequence[tuple[int, Row]]) -> Totals:
    totals = Totals()
    for number, row in rows:
        seconds = row.get("seconds", {})
        if not (isinstance(seconds, dict) and all(isinstance(spent, int | float) for spent in seconds.values())):
            raise damaged(path, number, "'seconds' is not an amount for each cause")
        totals = totals.plus({key: value for key, value in row.items() if value is not None})
    return totals


def _limits(folder: Path, *places: Row) -> dict[str, float]:
    """The first budget named: text ('2m,1e15flops'), or amounts by resource."""
    for budget in (place.get("budget") for place in places):
        if isinstance(budget, str):
            try:
                return Budget.parse(budget).limits
            except UsageError as error:
                raise ShoestringError(f"the budget of {folder} cannot be read: {error}") from None
        if isinstance(budget, dict):
            known = {name: budget.get(name) for name in Budget.__dataclass_fields__}
            return {name: float(limit) for name, limit in known.items() if isinstance(limit, int | float) and limit > 0}
    return {}


def _summary(path: Path, ledger: Sequence[tuple[int, Row]]) -> Row | None:
    """The summary; None while there is none, or where a run was resumed since it was written."""
    summary: Row | None = read_json(path, dict, "an object")
    check_numbers(path, 1, summary or {}, _SUMMARY)
    turns = [row.get("event") for _, row in ledger if row.get("event") in ("end", "resume")]
    return None if turns[-1:] == ["resume"] else summary


def read_settings(path: Path) -> Row | None:
    """What a TOML file holds; None where there is none. Raises: ShoestringError when it is damaged."""
    content = read_file(path)
    try:
        return None if content is None else tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ShoestringError(f"{path} is damaged: {error}") from None


def _config(path: Path) -> Row:
    config = read_settings(path)
    if config is None:
        raise UsageError(f"{path.parent} is not a run: it has no {path.name}")
    return config


def _decisions(path: Path) -> list[Row]:
    decisions: list[Any] = read_json(path, list, "a list of decisions") or []
    if not all(isinstance(decision, dict) for decision in decisions):
        raise damaged(path, 1, "a list of objects is expected")
    return decisions


def read_run(folder: Path) -> Run:
    """Everything in a run folder.

    Raises: UsageError when `folder` is not a run; ShoestringError, naming file and line, when a file is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"no such run: {folder} is not a folder")
    config = _config(folder / "config.toml")
    metrics = read_lines(folder / "metrics.jsonl", _METRICS)
    ledger = read_lines(folder / "ledger.jsonl", _LEDGER)
    summary = _summary(folder / "summary.json", ledger)
    sections = [section for section in config.values() if isinstance(section, dict)]
    return Run(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        environment=read_json(folder / "environment.json", dict, "an object") or {},
        train=_latest(metrics, "train"),
        heldout=_latest(metrics, "heldout"),
        totals=_totals(folder / "ledger.jsonl", ledger),
        resumed=sum(row.get("event") == "resume" for _, row in ledger),
        samples=[row for _, row in read_lines(folder / "samples.jsonl", {"step"})],
        summary=summary,
        limits=_limits(folder, summary or {}, config, *sections),
        decisions=_decisions(folder / "decisions.json"),
        cards=read_json(folder / "data-card.json", dict, "an object") or {},
        processes=read_processes(folder),
        lost=lost_seconds(row for _, row in ledger),
    )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, each once, under names that tell them apart. Raises: as `read_run`; UsageError when there is none."""
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    if not distinct:
        raise UsageError("no run to report on: name at least one run folder")
    runs = [read_run(folder) for folder in distinct]
    if len({run.name for run in runs}) == len(runs):
        return runs
    common = os.path.commonpath([run.folder.resolve() for run in runs])
    return [replace(run, name=run.folder.resolve().relative_to(common).as_posix()) for run in runs]
