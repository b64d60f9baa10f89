"""What each arm did and cost: its judged runs, its tuning, and everything that was spent on it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from shoestring.compare.design import UNITS, Design
from shoestring.compare.record import RunRecord, settings_text
from shoestring.errors import ShoestringError


@dataclass(frozen=True)
class ArmSpending:
    """seconds; flops: floating-point operations; tokens: trained on. None: of no run."""

    seconds: float | None
    flops: float | None
    tokens: float | None


@dataclass(frozen=True)
class Losses:
    """Held-out nats a token. values: seed -> loss of each finished judged run. sd: over the seeds, None below two."""

    mean: float | None
    sd: float | None
    values: Mapping[int, float]


@dataclass(frozen=True)
class Trial:
    settings: Mapping[str, Any]
    loss: float | None


@dataclass(frozen=True)
class Tuning:
    """tried: in the order of the design, as far as they were run; a failed one has no loss. chosen: the settings of the
    lowest loss, None where every trial failed. edge: the chosen value of some key is the least or greatest number tried for
    it, so that a better one may lie beyond. edges: which keys. spent: by all trials."""

    tried: tuple[Trial, ...]
    chosen: Mapping[str, Any] | None
    edge: bool
    edges: tuple[str, ...]
    spent: ArmSpending


@dataclass(frozen=True)
class ArmSummary:
    """runs: judged and finished; failed: judged and not finished; reasons: theirs, and those of failed trials, each once.

    spent: mean of a finished judged run. step_seconds: median over them. peak_memory: the most. tuning:
    None where nothing was tuned. charged: before the comparison, on what the arm is made from. total_spent: all judged runs
    and all trials, failed ones too, and what is charged.
    """

    runs: int
    failed: int
    reasons: tuple[str, ...]
    loss: Losses
    bits_per_byte: float | None
    spent: ArmSpending
    step_seconds: float | None
    peak_memory: int | None
    parameters: int | None
    tuning: Tuning | None
    charged: ArmSpending
    total_spent: ArmSpending


def total(runs: Sequence[RunRecord]) -> ArmSpending:
    """What these runs spent together."""
    return ArmSpending(
        math.fsum(run.seconds for run in runs), math.fsum(run.flops for run in runs), sum(run.tokens for run in runs)
    )


def added(one: ArmSpending, other: ArmSpending) -> ArmSpending:
    """What two spent together."""
    return ArmSpending(**{unit: (getattr(one, unit) or 0) + (getattr(other, unit) or 0) for unit in UNITS})


def mean(runs: Sequence[RunRecord]) -> ArmSpending:
    """What these runs spent on average."""
    if not runs:
        return ArmSpending(None, None, None)
    return ArmSpending(
        fmean(run.seconds for run in runs), fmean(run.flops for run in runs), fmean(run.tokens for run in runs)
    )


def check(records: Sequence[RunRecord], design: Design) -> None:
    """Refuse runs that are no part of the design: its figures would stand on other runs than it says.

    Raises: ShoestringError.
    """
    trials = {arm: {settings_text(settings) for settings in design.trials(arm)} for arm in design.arms}
    seeds, seen = set(design.all_seeds), set()
    for record in records:
        run = f"a run of '{record.arm}' at seed {record.seed}"
        if record.arm not in trials:
            raise ShoestringError(f"there is {run}, which is not an arm of this comparison: {', '.join(design.arms)}")
        if record.key in seen:
            raise ShoestringError(f"there is {run} twice, with the same settings and purpose")
        seen.add(record.key)
        if record.purpose == "tune" and (
            record.seed != design.tuning_seed or settings_text(record.settings) not in trials[record.arm]
        ):
            raise ShoestringError(f"there is {run} to tune {settings_text(record.settings)}, which was not to be tried")
        if record.purpose == "judge" and record.seed not in seeds:
            raise ShoestringError(f"there is {run}, which is not a seed of this comparison")
    for arm in design.arms:
        chosen = choose(records, design, arm)
        for record in records:
            if (
                record.arm == arm
                and record.purpose == "judge"
                and (chosen is None or settings_text(record.settings) != settings_text(chosen))
            ):
                raise ShoestringError(
                    f"there is a judged run of '{arm}' with {settings_text(record.settings)}, but its trials choose "
                    + ("nothing" if chosen is None else settings_text(chosen))
                )


def trials_of(records: Iterable[RunRecord], design: Design, arm: str) -> list[RunRecord]:
    """The tuning trials of an arm that were run, in the order of the design."""
    order = {settings_text(settings): place for place, settings in enumerate(design.trials(arm))}
    found = [record for record in records if record.arm == arm and record.purpose == "tune"]
    return sorted(found, key=lambda record: order[settings_text(record.settings)])


def choose(records: Iterable[RunRecord], design: Design, arm: str) -> Mapping[str, Any] | None:
    """The settings that an arm is judged with: those of its finished trial with the lowest loss, the first of equals.

    {} where nothing is tuned; None where no trial has finished.
    """
    if not design.tuned:
        return {}
    complete = [record for record in trials_of(records, design, arm) if record.complete]
    return min(complete, key=lambda record: record.loss or 0.0).settings if complete else None


def judged(records: Iterable[RunRecord], arm: str) -> dict[int, RunRecord]:
    """seed -> the judged run of an arm."""
    return {record.seed: record for record in records if record.arm == arm and record.purpose == "judge"}


def _edges(design: Design, arm: str, chosen: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    for key, value in chosen.items():
        values = [settings[key] for settings in design.trials(arm) if key in settings]
        numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
        if numeric and len(set(values)) > 1 and value in (min(values), max(values)):
            found.append(key)
    return tuple(found)


def _tuning(records: Sequence[RunRecord], design: Design, arm: str) -> Tuning | None:
    if not design.tuned:
        return None
    trials, chosen = trials_of(records, design, arm), choose(records, design, arm)
    edges = () if chosen is None else _edges(design, arm, chosen)
    tried = tuple(Trial(trial.settings, trial.loss if trial.complete else None) for trial in trials)
    return Tuning(tried, chosen, bool(edges), edges, total(trials))


def summarise(records: Sequence[RunRecord], design: Design, arm: str) -> ArmSummary:
    """What one arm did and cost."""
    runs = list(judged(records, arm).values())
    trials = trials_of(records, design, arm)
    complete = [run for run in runs if run.complete]
    losses = {run.seed: run.loss for run in complete if run.loss is not None}
    bits = [run.bits_per_byte for run in complete if run.bits_per_byte is not None]
    steps = [run.step_seconds for run in complete if run.step_seconds is not None]
    n = len(complete)
    charged = ArmSpending(**{unit: design.charged.get(arm, {}).get(unit, 0.0) for unit in UNITS})
    return ArmSummary(
        runs=n,
        failed=len(runs) - n,
        reasons=tuple(dict.fromkeys(run.failure for run in [*runs, *trials] if run.failure)),
        loss=Losses(fmean(losses.values()) if n else None, stdev(losses.values()) if n > 1 else None, losses),
        bits_per_byte=fmean(bits) if bits and len(bits) == n else None,
        spent=mean(complete),
        step_seconds=median(steps) if steps else None,
        peak_memory=max((run.peak_memory for run in complete), default=None),
        parameters=complete[0].parameters if complete else None,
        tuning=_tuning(records, design, arm),
        charged=charged,
        total_spent=added(total([*runs, *trials]), charged),
    )
