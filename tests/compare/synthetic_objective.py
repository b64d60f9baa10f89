"""An objective that costs nothing: what a training run would end at, by formula and by the seed's luck."""

import zlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import numpy as np

from shoestring.compare import Design, PlannedRun, RunRecord
from shoestring.compare.record import Purpose

MINUTE = 60.0


def luck(*words: object) -> float:
    """A standard normal number that belongs to these words for ever."""
    return float(np.random.default_rng(zlib.crc32(repr(words).encode())).standard_normal())


def record(arm: str, seed: int, loss: float | None, purpose: Purpose = "judge", **more: Any) -> RunRecord:
    """A run that spent a minute and ended at `loss`; None: it failed."""
    failed = loss is None
    given: dict[str, Any] = {
        "settings": {},
        "stopped": "failed" if failed else "finished",
        "reason": "the loss is not finite" if failed else "",
        "bits_per_byte": None if loss is None else loss / 3,
        "seconds": MINUTE,
        "flops": 1e12,
        "tokens": 100_000,
        "steps": 100,
        "step_seconds": 0.5,
        "peak_memory": 10**9,
        "parameters": 10**6,
        "curve": () if loss is None else curve(loss),
    }
    return RunRecord(arm=arm, seed=seed, purpose=purpose, loss=loss, **{**given, **more})


def curve(final: float, start: float = 8.0) -> tuple[dict[str, float | None], ...]:
    """Held-out points at the quarters of a run, on a straight line from `start` to `final`."""
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    return tuple(
        {
            "progress": share,
            "seconds": share * MINUTE,
            "flops": share * 1e12,
            "tokens": share * 1e5,
            "loss": start + share * (final - start),
        }
        for share in shares
    )


class Objective:
    """`Trials`: loss = level + the arm's own offset + the seed's luck, shared by all arms + the run's own luck.

    offsets: arm -> nats; None: it always fails. best: the learning rate at which an arm is not worse by log10(lr / best)^2,
    for arms whose settings have an 'lr'. repetition: another world with other luck. calls: what it was asked for.
    """

    def __init__(
        self,
        offsets: Mapping[str, float | None],
        *,
        shared: float = 0.05,
        own: float = 0.02,
        best: float = 1e-3,
        repetition: int = 0,
    ) -> None:
        self.offsets, self.shared, self.own, self.best, self.repetition = offsets, shared, own, best, repetition
        self.calls: list[tuple[str, int, dict[str, Any], str]] = []

    def map(self, asked: Iterable[PlannedRun]) -> Generator[RunRecord, None, None]:
        """As `Trials.map`."""
        for one in asked:
            yield self(one.arm, one.seed, one.settings, one.purpose)

    def __call__(self, arm: str, seed: int, settings: Mapping[str, Any], purpose: Purpose) -> RunRecord:
        self.calls.append((arm, seed, dict(settings), purpose))
        offset = self.offsets[arm]
        if offset is None:
            return record(arm, seed, None, purpose, settings=dict(settings))
        loss = 4.0 + offset
        if "lr" in settings:
            loss += float(np.log10(settings["lr"] / self.best)) ** 2
        loss += self.shared * luck(self.repetition, seed)
        loss += self.own * luck(self.repetition, seed, arm, purpose, sorted(settings.items()))
        return record(arm, seed, loss, purpose, settings=dict(settings))


def design(*arms: str, seeds: int = 5, **more: Any) -> Design:
    """A comparison at a minute a run."""
    given: dict[str, Any] = {"unit": "seconds", "amount": MINUTE, "tuning": {}, "tuning_seed": 1000}
    return Design(arms=arms or ("adamw", "muon"), seeds=tuple(range(seeds)), **{**given, **more})
