"""A run is a folder: its configuration, environment, measurements, ledger, samples, checkpoints and summary."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

from shoestring import __version__, atomic
from shoestring.budget.machine import Machine
from shoestring.config import build, read_toml, to_toml, tree
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import read_json, read_lines
from shoestring.locks import Held, hold
from shoestring.train.config import RunConfig
from shoestring.train.origin import Origin, absolute

METRICS = {"step", "progress", "seconds", "flops", "tokens", "loss", "tokens_per_second", "bits_per_byte", "targets"}
"""Keys of a line of metrics that hold numbers."""

_PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "transformers", "pydantic", "matplotlib")


LOCK = "lock"
"""The file whose lock is held by the process that writes in a run's folder."""

PREPARED = ("ledger.jsonl", "decisions.json", "environment.json", "origin.json", "tokenizer")
"""What a run's folder may hold before config.toml, with which the run has begun."""

OUTPUTS = ("output.txt", "workers", "name", "token")
"""What may be there besides: of the workers, or of whoever started the run."""

Say = Callable[[str], None]


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
    @contextmanager
    def create(cls, path: Path, say: Say = print, *, workers: bool = False) -> Iterator["RunFolder"]:
        """A new run's folder, which this process alone writes in. What a run left there that was stopped before it had begun
        is removed first; a run that fails before it has begun leaves nothing.

        workers: there are some at work in it already, whose files stay.
        Raises: UsageError when `path` holds something else, or another process is at work there; ShoestringError when it
        cannot be written.
        """
        made = not path.exists()
        _refuse_taken(path)
        folder = cls._made(path)
        with folder.held(say):
            _refuse_taken(path)  # another process may have been quicker
            for name in PREPARED if workers else (*PREPARED, *OUTPUTS):
                _remove(path / name)
            try:
                yield folder
            except BaseException:
                if not folder.begun:
                    folder._discard(made)
                raise

    @classmethod
    def _made(cls, path: Path) -> "RunFolder":
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShoestringError(f"{path} cannot be made: {error.strerror}") from None
        if not os.access(path, os.W_OK):
            raise ShoestringError(f"{path} is read-only")
        return cls(path)

    def _discard(self, made: bool) -> None:
        for name in PREPARED:
            _remove(self.path / name)
        if made and all(entry.name == LOCK for entry in self.path.iterdir()):
            with suppress(OSError):
                (self.path / LOCK).unlink()
                self.path.rmdir()

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """A run that has begun. Raises: UsageError when `path` is not one."""
        if not path.is_dir():
            raise UsageError(f"no such run: {path}")
        folder = cls(path)
        if not folder.begun:
            if _is_unbegun(path):
                raise UsageError(f"{path} was stopped before its first step: begin it again with --out {path}")
            raise UsageError(f"{path} is not a run: it has no config.toml")
        return folder

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.path / "config.toml").is_file()

    @contextmanager
    def held(self, say: Say = print, *, wait: str = "") -> Iterator[None]:
        """While this process alone writes here. What killed processes left half written is removed.

        wait: said where another process is at work here, which is then waited for. Raises: UsageError where none is waited
        for.
        """
        try:
            with hold(self.path / LOCK, wait=wait, say=say):
                atomic.sweep(self.path)
                atomic.sweep(self.checkpoints)
                yield
        except Held as held:
            raise self.in_use(held) from None

    def in_use(self, held: Held) -> UsageError:
        """The error that says that another process is at work here."""
        process = f" (process {held.holder})" if held.holder else ""
        return UsageError(f"another process{process} is at work in {self.path}: wait for it, or stop it first")

    def write_config(self, config: RunConfig, data: str = "") -> None:
        """Write config.toml, with which the run has begun, and beside it what tells later whether it was edited. Files are
        named by absolute paths, so that the run can be gone on with from any folder. data: the dataset's fingerprint."""
        config = absolute(config)
        Origin(tree(config), data).write(self.path)
        atomic.write_text(self.path / "config.toml", to_toml(config))

    def read_config(self) -> RunConfig:
        """Raises: UsageError where config.toml was edited since the run began, save for where its files lie."""
        path = self.path / "config.toml"
        plain = read_toml(path)
        origin = Origin.read(self.path)
        if origin is not None:
            origin.require_unedited(path, plain)
        return build(RunConfig, plain)

    def read_origin(self) -> Origin | None:
        """What the run began with; None where it was begun by a version that did not keep it."""
        return Origin.read(self.path)

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


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_unbegun(path: Path) -> bool:
    """Whether a folder holds nothing but what a run leaves that was stopped before it had begun."""
    names = {entry.name for entry in path.iterdir()}
    return names <= {LOCK, *PREPARED, *OUTPUTS} and not names.isdisjoint({LOCK, "ledger.jsonl"})


def _refuse_taken(path: Path) -> None:
    if path.is_dir():
        if not any(path.iterdir()) or _is_unbegun(path):
            return
    elif not path.exists():
        return
    raise UsageError(f"{path} exists and is not empty: name another with --out, or continue it with --resume")
