"""A run is a folder: its configuration, environment, measurements, ledger, samples, checkpoints and summary."""

import json
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

from shoestring import __version__, atomic
from shoestring.budget import busy_waiting
from shoestring.budget.machine import Machine
from shoestring.config import build, read_toml, to_toml, tree
from shoestring.data.curated_folder import CARD, cards_of
from shoestring.data.dataset import Dataset
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import read_json, read_lines
from shoestring.train.config import RunConfig
from shoestring.train.former import translated
from shoestring.train.origin import NAME as ORIGIN
from shoestring.train.origin import Origin, absolute
from shoestring.train.work_folder import Kind, held

EVENTS = "events.jsonl"
"""What was noticed of the processes of a run: which held the others up, which was lost, and that all were started again."""

RUN = Kind(
    begins_with="config.toml",
    prepared=(
        "ledger.jsonl",
        "decisions.json",
        "environment.json",
        ORIGIN,
        "tokenizer",
        CARD,
        "timeline.jsonl",
        EVENTS,
    ),
    outputs=("output.txt", "workers", "stages", "name", "token"),
)
"""A run's folder. Outputs are those of its workers, and of whoever starts them."""

METRICS = {
    "step",
    "progress",
    "seconds",
    "flops",
    "tokens",
    "loss",
    "tokens_per_second",
    "bits_per_byte",
    "targets",
} | {
    "old_loss",
    "old_bits_per_byte",
    "old_targets",
}
"""Keys of a line of metrics that hold numbers."""

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


def run_and_step(place: str) -> tuple[Path, int | None]:
    """The run, and the step, that a place means: a run's folder, of whose checkpoints the newest is meant (None), or the folder of
    one of them, RUN/checkpoints/step-00000100.
    """
    path = Path(place)
    named = re.fullmatch(r"step-(\d{8,18})", path.name)
    if named and path.parent.name == "checkpoints":
        return path.parent.parent, int(named[1])
    return path, None


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tokenizer = path / "tokenizer"
        self.ledger = path / "ledger.jsonl"
        self.metrics = path / "metrics.jsonl"

    @classmethod
    @contextmanager
    def create(cls, path: Path, *, workers: bool = False) -> Iterator["RunFolder"]:
        """A new run's folder, which this process alone writes in: see `Kind.created`.

        workers: there are some at work in it already.
        Raises: UsageError, ShoestringError.
        """
        with RUN.created(path, keep_outputs=workers):
            yield cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """A run that has begun. Raises: UsageError when `path` is not one."""
        if not path.is_dir():
            raise UsageError(f"no such run: {path}")
        if not RUN.begun(path):
            if RUN.unbegun(path):
                raise UsageError(f"{path} was stopped before its first step: begin it again with --out {path}")
            raise UsageError(f"{path} is not a run: it has no config.toml")
        return cls(path)

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return RUN.begun(self.path)

    @contextmanager
    def held(self, *, wait: str = "") -> Iterator[None]:
        """While this process alone writes here: see `work_folder.held`. Raises: UsageError where another one does."""
        with held(self.path, wait=wait):
            atomic.sweep(self.checkpoints)
            yield

    def write_config(self, config: RunConfig, dataset: Dataset | None = None) -> None:
        """Write config.toml, with which the run has begun, and beside it what tells later whether it was edited. Files are
        named by absolute paths, so that the run can be gone on with from any folder.

        dataset: the run's, where it is known.
        """
        config = absolute(config)
        data, tokenizer = ("", "") if dataset is None else (dataset.fingerprint, dataset.tokenizer.fingerprint)
        Origin(tree(config), data, tokenizer).write(self.path)
        cards = cards_of(config.data)
        if cards:
            self.write_json(CARD, cards)
        atomic.write_text(self.path / "config.toml", to_toml(config))

    def read_config(self) -> RunConfig:
        """Raises: UsageError where config.toml was edited since the run began, save for where its files lie."""
        path = self.path / "config.toml"
        plain = read_toml(path)
        origin = Origin.read(self.path)
        if origin is not None:
            origin.require_unedited(path, plain)
        return build(RunConfig, translated(plain))

    def read_origin(self) -> Origin | None:
        """What the run began with; None where it was begun by a version that did not keep it."""
        return Origin.read(self.path)

    def read_tokenizer(self) -> TextTokenizer:
        """The run's own copy of its tokenizer. Raises: UsageError, ShoestringError where it is not what the run began with."""
        found, origin = TextTokenizer.load(self.tokenizer), self.read_origin()
        if origin is not None and origin.tokenizer not in ("", found.fingerprint):
            raise ShoestringError(f"{self.tokenizer} is damaged: it is not the tokenizer that the run began with")
        return found

    def write_json(self, name: str, content: Any) -> None:
        atomic.write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_object(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file of the run, or None where it is absent. Raises: ShoestringError when damaged."""
        found: dict[str, Any] | None = read_json(self.path / name, dict, "an object")
        return found

    def read_summary(self) -> dict[str, Any]:
        """summary.json; empty while there is none. Raises: ShoestringError when damaged."""
        return self.read_object("summary.json") or {}

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. Raises: ShoestringError, naming the line, where one is damaged."""
        rows = read_lines(self.metrics, METRICS, unfinished=False)
        for number, row in rows:
            if not isinstance(row.get("step"), int) or row.get("kind") not in ("train", "heldout"):
                raise ShoestringError(f"{self.metrics}, line {number}, is damaged: not a line of metrics")
        return [row for _, row in rows]

    def roll_back_metrics(self, step: int) -> None:
        """Drop the measurements of steps after `step`, which the resumed run makes again. Raises: as `read_metrics`."""
        if not self.metrics.exists():
            return
        numbered = enumerate(self.read_metrics())
        kept = {place for place, row in numbered if row["step"] <= step}
        lines = [line for line in self.metrics.read_bytes().split(b"\n")[:-1] if line.strip()]
        atomic.write_bytes(self.metrics, b"".join(line + b"\n" for place, line in enumerate(lines) if place in kept))
