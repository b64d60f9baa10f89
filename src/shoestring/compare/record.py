"""What a comparison keeps of each run, and the file that keeps it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic

from shoestring.compare.log import Log
from shoestring.json_files import parse_json

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
    "loss"} each. A loss that is not finite is held as None. made_on: the `JobMachine` of a run that was not made by the machine
    that the comparison's environment.json tells of, as JSON; {} for all others.
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
    made_on: dict[str, str] = field(default_factory=dict)

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
_LATER = {"made_on"}
"""What records of earlier versions do not have."""


def _parse(line: bytes) -> RunRecord:
    """Raises: ValueError, in one line."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    if wrong_ones := row.keys() ^ _FIELDS - (_LATER - row.keys()):
        wrong = sorted(wrong_ones)[0]
        raise ValueError(f"'{wrong}' is {'missing' if wrong in _FIELDS else 'not a part of a run'}")
    try:
        return _CHECKED.validate_json(line, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


class RunLog(Log[RunRecord]):
    """The runs of a comparison in the order they were made."""

    def parse(self, line: bytes) -> RunRecord:
        """As `Log.parse`."""
        return _parse(line)
