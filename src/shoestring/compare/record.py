"""What a comparison keeps of each run, and the file that keeps it."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic

from shoestring.errors import ShoestringError
from shoestring.json_files import NotJson, parse_json

Purpose = Literal["tune", "judge"]
Key = tuple[str, str, int, str]


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as one text, the same for equal settings in any order. Raises: ValueError for what JSON cannot hold."""
    return json.dumps(settings, sort_keys=True, allow_nan=False, default=dict)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class RunRecord:
    """One run of one arm.

    arm: its name. seed: of data order and first weights. purpose: 'tune' to choose settings, 'judge' to be compared.
    settings: tuned key -> value, {} where nothing is tuned. stopped: 'finished' when the whole budget was spent, decay
    included; 'failed' otherwise, for `reason` (one line). loss: held-out nats a token at the end; bits_per_byte likewise.
    seconds, flops, tokens: what its ledger says it spent, all told. steps: taken. step_seconds: median seconds of a step.
    peak_memory: bytes. parameters: count. curve: held-out points on the way, {"progress", "seconds", "flops", "tokens",
    "loss"} each. A loss that is not finite is held as None.
    """

    arm: str
    seed: int
    purpose: Purpose
    settings: dict[str, Any]
    stopped: Literal["finished", "failed"]
    reason: str
    loss: float | None
    bits_per_byte: float | None
    seconds: float
    flops: float
    tokens: int
    steps: int
    step_seconds: float | None
    peak_memory: int
    parameters: int
    curve: tuple[dict[str, float | None], ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("loss", "bits_per_byte", "step_seconds"):
            object.__setattr__(self, name, _finite(getattr(self, name)))
        for name in ("seconds", "flops"):
            spent = float(getattr(self, name))
            if not (math.isfinite(spent) and spent >= 0):
                raise ValueError(f"a run cannot have spent {spent:g} {name}")
            object.__setattr__(self, name, spent)
        points = tuple({key: _finite(value) for key, value in point.items()} for point in self.curve)
        object.__setattr__(self, "curve", points)

    @property
    def complete(self) -> bool:
        """Whether it can be compared: it finished, with a finite loss."""
        return self.stopped == "finished" and self.loss is not None

    @property
    def failure(self) -> str:
        """Why it cannot be compared, in one line; '' when it can."""
        if self.complete:
            return ""
        return " ".join(self.reason.split()) or (
            "its loss is not finite" if self.stopped == "finished" else "no reason given"
        )

    @property
    def key(self) -> Key:
        """What tells this run from every other of a comparison."""
        return self.purpose, self.arm, self.seed, settings_text(self.settings)


_CHECKED = pydantic.TypeAdapter(RunRecord)
_FIELDS = {field.name for field in dataclasses.fields(RunRecord)}


def _parse(line: bytes) -> RunRecord:
    """Raises: ValueError, in one line."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    if row.keys() != _FIELDS:
        wrong = sorted(row.keys() ^ _FIELDS)[0]
        raise ValueError(f"'{wrong}' is {'missing' if wrong in _FIELDS else 'not a part of a run'}")
    try:
        return _CHECKED.validate_json(line, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


class RunLog:
    """The runs of a comparison in the order they were made: a file of one JSON object a line, only ever appended to.

    A line is on the disk before `append` returns. A last line without its newline was torn by a kill: reading passes over
    it, and the next append cuts it away. path: None keeps the runs in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._records: list[RunRecord] = []
        if path is not None:
            self._records = self._load(path)

    @staticmethod
    def _content(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ShoestringError(f"{path} cannot be read: {error.strerror}") from None

    def _load(self, path: Path) -> list[RunRecord]:
        records: list[RunRecord] = []
        keys: set[Key] = set()
        for number, line in enumerate(self._content(path).split(b"\n")[:-1], start=1):
            try:
                record = _parse(line)
            except ValueError as error:
                reason = "not JSON" if isinstance(error, NotJson) else error
                raise ShoestringError(f"{path}, line {number}, is damaged: {reason}") from None
            if record.key in keys:
                raise ShoestringError(f"{path}, line {number}, is damaged: the same run stands above it")
            keys.add(record.key)
            records.append(record)
        return records

    def read(self) -> list[RunRecord]:
        """All runs so far. Raises (here and when opened): ShoestringError, naming file and line, for a damaged one."""
        return list(self._records)

    def append(self, record: RunRecord) -> None:
        """Add a run, on the disk before this returns. Raises: ShoestringError when it cannot be written."""
        if self.path is not None:
            line = json.dumps(asdict(record), allow_nan=False).encode() + b"\n"
            try:
                self._write(self.path, line)
            except OSError as error:
                raise ShoestringError(f"{self.path} cannot be written: {error.strerror}") from None
        self._records.append(record)

    def _write(self, path: Path, line: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self._content(path)
        with open(path, "ab") as file:
            file.truncate(content.rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
