"""How fast a run goes: measured on steps of its shape, or by rule from the machine's rate of large matrix products."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring import atomic
from shoestring.budget.machine import cache_folder, fingerprint
from shoestring.errors import ShoestringError
from shoestring.json_files import read_json
from shoestring.model.config import ModelConfig
from shoestring.plan import rules


def seconds_per_token(flops: float, width: int, rate: float) -> float:
    """Seconds of training on a token, by rule. flops: operations of a token. rate: FLOP/s of large matrix products."""
    return flops / rate / rules.utilisation(width)


@dataclass(frozen=True)
class Pace:
    """What a run of one shape takes here, in seconds.

    per_token: training on a token, all in. forward_share: what evaluating on a token takes, as a share of that. starting:
    building the model and the first step, beyond what a step takes. measuring: timing ways to compute. memory: bytes that
    the process held at most once it had trained, None where that was not measured. measured: whether steps of the shape
    were timed for this.
    """

    per_token: float
    forward_share: float = rules.FORWARD_SHARE
    starting: float = rules.STARTING_SECONDS
    measuring: float = 0.0
    memory: float | None = None
    measured: bool = False


class Paces:
    """The pace of any shape: as measured; else by rule, corrected by what the last measured one took in place of its rule.

    rate: FLOP/s of large matrix products, of all that compute at the same time. measuring: seconds that the run will spend on
    timing ways to compute where its shape was not measured.
    """

    def __init__(self, rate: float, measuring: float) -> None:
        self.rate, self.measuring = rate, measuring
        self._measured: list[tuple[ModelConfig, float, Pace]] = []

    def add(self, model: ModelConfig, flops: float, pace: Pace) -> None:
        """flops: operations of a token."""
        self._measured.append((model, flops, pace))

    def knows(self, model: ModelConfig) -> bool:
        return any(known == model for known, _, _ in self._measured)

    def of(self, model: ModelConfig, flops: float) -> Pace:
        """flops: operations of a token."""
        for known, _, pace in self._measured:
            if known == model:
                return pace
        by_rule = seconds_per_token(flops, model.width, self.rate)
        if not self._measured:
            return Pace(by_rule, measuring=self.measuring)
        near, its_flops, pace = self._measured[-1]
        factor = pace.per_token / seconds_per_token(its_flops, near.width, self.rate)
        return Pace(by_rule * factor, pace.forward_share, pace.starting, self.measuring)


class MeasuredPaces:
    """Paces that were measured on this machine, kept in the cache: a second plan of a shape need not try it again.

    device: that was computed on. cache: the folder; None: the user's. again: forget what was measured, on a busy machine say.
    """

    def __init__(self, device: str, *, cache: Path | None = None, again: bool = False) -> None:
        self._path = (cache or cache_folder()) / f"paces-{fingerprint(device)}.json"
        self._kept: dict[str, Any] = {}
        if not again:
            with suppress(ShoestringError):  # damaged: measured again
                self._kept = read_json(self._path, dict, "an object") or {}

    @staticmethod
    def key(described: Any) -> str:
        """Of all that a pace hangs on, as plain values."""
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    def get(self, key: str) -> Pace | None:
        try:
            return Pace(**self._kept[key])
        except (KeyError, TypeError):
            return None

    def put(self, key: str, pace: Pace) -> None:
        self._kept[key] = asdict(pace)
        atomic.write_text(self._path, json.dumps(self._kept, indent=1))
