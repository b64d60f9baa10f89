"""A comparison is a folder: its design, its arms, every run's figures, the environment, the verdict and a page."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from shoestring import atomic
from shoestring.budget.machine import Machine
from shoestring.compare.design import Design
from shoestring.config import build, read_toml, to_toml
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig
from shoestring.train.former import translated
from shoestring.train.run_folder import environment
from shoestring.train.work_folder import Kind, held

COMPARISON = Kind(begins_with="design.toml", prepared=("arms", "environment.json"))


class ComparisonFolder:
    """design.toml, arms/NAME.toml (complete configurations), runs.jsonl, environment.json, verdict.json, report.html;
    runs/ holds the folders of the runs themselves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records, self.runs, self.arms = path / "runs.jsonl", path / "runs", path / "arms"
        self.verdict = path / "verdict.json"

    @classmethod
    @contextmanager
    def create(cls, path: Path) -> Iterator["ComparisonFolder"]:
        """A new folder, which this process alone works in. Raises: UsageError when `path` holds something, ShoestringError
        when it cannot be made."""
        with COMPARISON.created(path):
            yield cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this process alone works here. Raises: UsageError where another one does."""
        with held(self.path):
            yield

    @classmethod
    def open(cls, path: Path) -> "ComparisonFolder":
        """One that has begun. Raises: UsageError when `path` is not one."""
        if not COMPARISON.begun(path):
            raise UsageError(f"{path} is not a comparison: it has no design.toml")
        return cls(path)

    def write(self, design: Design, arms: Mapping[str, RunConfig], machine: Machine) -> None:
        """Write what there is to know before the first run. design.toml comes last: with it the folder has begun."""
        self.arms.mkdir(parents=True, exist_ok=True)
        for name, config in arms.items():
            atomic.write_text(self.arms / f"{name}.toml", to_toml(config))
        atomic.write_text(self.path / "environment.json", json.dumps(environment(machine), indent=1) + "\n")
        plain: dict[str, Any] = {key: value for key, value in dataclasses.asdict(design).items() if value is not None}
        atomic.write_text(self.path / "design.toml", tomli_w.dumps(plain))

    def read_design(self) -> Design:
        """Raises: UsageError, in one line, when design.toml is damaged."""
        return build(Design, read_toml(self.path / "design.toml"))

    def read_arms(self, design: Design) -> dict[str, RunConfig]:
        """The configurations, the base's first. Raises: UsageError."""
        return {name: build(RunConfig, translated(read_toml(self.arms / f"{name}.toml"))) for name in design.arms}

    def write_verdict(self, content: Mapping[str, Any]) -> None:
        atomic.write_text(self.verdict, json.dumps(content, indent=1, allow_nan=False) + "\n")
