"""A run is a folder: its configuration, environment, measurements, ledger, samples, checkpoints and summary."""

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

from shoestring import __version__, atomic
from shoestring.budget import busy_waiting
from shoestring.budget.machine import Machine
from shoestring.config import build, read_toml, to_toml
from shoestring.errors import ShoestringError, UsageError
from shoestring.train.config import RunConfig

_PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "transformers", "pydantic", "matplotlib")


class JsonLines:
    """An append-only file of one JSON object a line. A torn last line left by a killed process is cut off on opening."""

    def __init__(self, path: Path) -> None:
        whole = sum(len(line) + 1 for line in path.read_bytes().split(b"\n")[:-1]) if path.exists() else 0
        self._file: IO[bytes] = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._file.truncate(whole)

    def append(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def environment(machine: Machine) -> dict[str, Any]:
    """What the run ran on: nothing that names the user or the folders."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    return {
        "shoestring": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": packages,
        "torch": {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()},
        "waiting": busy_waiting.policy(),
        "machine": asdict(machine),
    }


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tokenizer = path / "tokenizer"
        self.ledger = path / "ledger.jsonl"
        self.metrics = path / "metrics.jsonl"

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """A new, empty run. Raises: UsageError when `path` holds something, ShoestringError when it cannot be written."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists and is not empty: name another with --out, or continue it with --resume")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShoestringError(f"{path} cannot be made: {error.strerror}") from None
        if not os.access(path, os.W_OK):
            raise ShoestringError(f"{path} is read-only")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """A run that has begun. Raises: UsageError when `path` is not one."""
        if not path.is_dir():
            raise UsageError(f"no such run: {path}")
        if not (path / "config.toml").is_file():
            raise UsageError(f"{path} is not a run: it has no config.toml")
        return cls(path)

    def write_config(self, config: RunConfig) -> None:
        atomic.write_text(self.path / "config.toml", to_toml(config))

    def read_config(self) -> RunConfig:
        return build(RunConfig, read_toml(self.path / "config.toml"))

    def write_json(self, name: str, content: Any) -> None:
        atomic.write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the run, or None where it is absent. Raises: ShoestringError when damaged."""
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ShoestringError(f"{path} is damaged: {error}") from None

    def roll_back_metrics(self, step: int) -> None:
        """Drop the measurements of steps after `step`, which the resumed run makes again."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_bytes().split(b"\n")[:-1]
        atomic.write_bytes(self.metrics, b"".join(line + b"\n" for line in lines if json.loads(line)["step"] <= step))
