"""One candidate against the base: the verdict with its figures, and what the candidate costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from shoestring.compare.design import Design
from shoestring.compare.record import RunRecord
from shoestring.compare.speed import Pair, SpeedUp, speed_up
from shoestring.compare.standing import Judgement, differences, standing
from shoestring.compare.statistics import LEAST_PAIRS, Paired, pairs_needed


@dataclass(frozen=True)
class SeedDifference:
    """difference: candidate - base, nats a token."""

    seed: int
    difference: float


@dataclass(frozen=True)
class Comparison:
    """What the pairs of one candidate and the base show.

    difference: mean of candidate - base, nats a token: below zero the candidate is better. interval, p_value: at
    `confidence`, which is higher than the design's where seeds are added, to pay for every look; the verdict is drawn where
    p_value < 1 - confidence. margin: nats up to which a difference does not matter, None where none was set.
    minimum_detectable_effect: nats. pairs_needed: to show a true difference of the size observed. extra_memory: bytes;
    extra_step_seconds: of medians over the pairs. flags: what a reader must know, one line each.
    """

    candidate: str
    base: str
    verdict: Judgement
    pairs: int
    difference: float | None
    interval: tuple[float, float] | None
    confidence: float
    p_value: float | None
    margin: float | None
    standard_deviation: float | None
    minimum_detectable_effect: float | None
    pairs_needed: int | None
    speed_up: SpeedUp
    extra_memory: int | None
    extra_step_seconds: float | None
    flags: tuple[str, ...]
    per_seed: tuple[SeedDifference, ...]


def compare(records: Sequence[RunRecord], design: Design, candidate: str) -> Comparison:
    """The comparison of one candidate with the base. records: all of the comparison, or any part of it."""
    stands = standing(records, design, candidate)
    pairs, found = stands.pairs, stands.found
    return Comparison(
        candidate=candidate,
        base=design.base,
        verdict=stands.verdict,
        pairs=found.pairs,
        difference=found.difference,
        interval=found.interval,
        confidence=found.confidence,
        p_value=found.p_value,
        margin=design.margin * fmean(base.loss or 0.0 for base, _ in pairs) if design.margin and pairs else None,
        standard_deviation=found.standard_deviation,
        minimum_detectable_effect=found.minimum_detectable_effect,
        pairs_needed=_needed(found, design.confidence),
        speed_up=speed_up(pairs, design.unit),
        extra_memory=max(c.peak_memory for _, c in pairs) - max(b.peak_memory for b, _ in pairs) if pairs else None,
        extra_step_seconds=_extra_step_seconds(pairs),
        flags=stands.flags,
        per_seed=tuple(
            SeedDifference(base.seed, difference)
            for (base, _), difference in zip(pairs, differences(pairs), strict=True)
        ),
    )


def _needed(found: Paired, confidence: float) -> int | None:
    if not found.difference or not found.standard_deviation or found.constant:
        return None
    needed = pairs_needed(found.difference, found.standard_deviation, confidence)
    return None if needed is None else max(needed, LEAST_PAIRS)


def _extra_step_seconds(pairs: Sequence[Pair]) -> float | None:
    steps = [
        (base.step_seconds, candidate.step_seconds)
        for base, candidate in pairs
        if base.step_seconds is not None and candidate.step_seconds is not None
    ]
    return median(c for _, c in steps) - median(b for b, _ in steps) if steps else None
