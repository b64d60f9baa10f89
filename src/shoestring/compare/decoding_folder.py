"""A comparison of ways to decode is a folder: its terms, its arms, the prompts, every round, and the verdict."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from shoestring import atomic
from shoestring.budget.machine import Machine
from shoestring.compare.decoders import DecodeConfig
from shoestring.compare.rounds import Rounds
from shoestring.config import build, read_toml, to_toml
from shoestring.errors import UsageError
from shoestring.json_files import read_lines
from shoestring.train.run_folder import environment
from shoestring.train.work_folder import Kind, held

DECODING = Kind(begins_with="terms.toml", prepared=("arms", "environment.json", "prompts.jsonl"))


class DecodingFolder:
    """terms.toml, arms/NAME.toml, prompts.jsonl, rounds.jsonl, environment.json and verdict.json."""

    def __init__(self, path: Path) -> None:
        self.path, self.rounds, self.arms = path, path / "rounds.jsonl", path / "arms"
        self.prompts, self.verdict = path / "prompts.jsonl", path / "verdict.json"

    @classmethod
    @contextmanager
    def create(cls, path: Path) -> Iterator["DecodingFolder"]:
        """A new folder, which this process alone works in. Raises: UsageError when `path` holds something."""
        with DECODING.created(path):
            yield cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this process alone works here. Raises: UsageError where another one does."""
        with held(self.path):
            yield

    @classmethod
    def is_one(cls, path: Path) -> bool:
        """Whether ways to decode are compared there."""
        return DECODING.begun(path)

    def write(self, rounds: Rounds, arms: Mapping[str, DecodeConfig], prompts: Sequence[str], machine: Machine) -> None:
        """Write what there is to know before the first round. terms.toml comes last: with it the folder has begun."""
        self.arms.mkdir(parents=True, exist_ok=True)
        for name, config in arms.items():
            atomic.write_text(self.arms / f"{name}.toml", to_toml(config))
        lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts]
        atomic.write_text(self.prompts, "".join(lines))
        atomic.write_text(self.path / "environment.json", json.dumps(environment(machine), indent=1) + "\n")
        atomic.write_text(self.path / "terms.toml", tomli_w.dumps(_without_none(dataclasses.asdict(rounds))))

    def read_rounds(self) -> Rounds:
        """Raises: UsageError, in one line, when terms.toml is damaged."""
        return build(Rounds, read_toml(self.path / "terms.toml"))

    def read_arms(self, rounds: Rounds) -> dict[str, DecodeConfig]:
        """The ways to decode, the base's first. Raises: UsageError."""
        return {name: build(DecodeConfig, read_toml(self.arms / f"{name}.toml")) for name in rounds.arms}

    def read_prompts(self) -> list[str]:
        """Raises: ShoestringError where the file is damaged, UsageError where it holds none."""
        return read_prompts(self.prompts)

    def write_verdict(self, content: Mapping[str, Any]) -> None:
        """Of all rounds that are done."""
        atomic.write_text(self.verdict, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_prompts(path: Path) -> list[str]:
    """The prompts of JSON lines: the text under 'prompt', 'question' or 'text', whichever comes first.

    Raises: UsageError where the file is missing or a line has none, ShoestringError where it is damaged.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    found = list[str]()
    for number, row in read_lines(path):
        text = next((row[key] for key in ("prompt", "question", "text") if key in row), None)
        if not isinstance(text, str) or not text:
            raise UsageError(f"{path}, line {number}: no text under 'prompt', 'question' or 'text'")
        found.append(text)
    if not found:
        raise UsageError(f"{path} holds no prompts")
    return found


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value
