"""The verdict: every candidate against the base, and what each arm cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shoestring.compare.arms import ArmSummary, check, judged, summarise
from shoestring.compare.comparison import Comparison, compare
from shoestring.compare.design import Design
from shoestring.compare.record import RunRecord
from shoestring.compare.wording import sentence, statement


@dataclass(frozen=True)
class MachineRuns:
    """A machine, and the runs that were made on it, for people: 'base: seeds 0, 2; slow: seed 1'."""

    host: str
    device: str
    fingerprint: str
    runs: str

    @classmethod
    def of(cls, records: Sequence[RunRecord]) -> tuple["MachineRuns", ...]:
        """Those of these records, in the order of their names."""
        made = dict[tuple[str, str, str], dict[str, list[RunRecord]]]()
        for one in (each for each in records if each.made_on):
            where = one.made_on["host"], one.made_on["device"], one.made_on["fingerprint"]
            made.setdefault(where, {}).setdefault(one.arm, []).append(one)
        return tuple(
            cls(*where, "; ".join(f"{arm}: {_which(runs)}" for arm, runs in by.items()))
            for where, by in sorted(made.items())
        )


def _which(runs: Sequence[RunRecord]) -> str:
    """'seeds 0, 2 and 3 trials'."""
    seeds = [str(seed) for seed in sorted(run.seed for run in runs if run.purpose == "judge")]
    trials = len(runs) - len(seeds)
    judged_ones = f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else ""
    tried = f"{trials} trial{'s' * (trials > 1)}" if trials else ""
    return " and ".join(part for part in (judged_ones, tried) if part)


@dataclass(frozen=True)
class Verdict:
    """What a comparison found. seeds: judged by any arm, in the order in which they are. statement: all of it in a line.
    arms: name -> what it did and cost. sentences: one for each of `comparisons`. machines: those that runs were made on, each
    with its runs, where records say so."""

    design: Design
    seeds: tuple[int, ...]
    statement: str
    arms: Mapping[str, ArmSummary]
    comparisons: tuple[Comparison, ...]
    sentences: tuple[str, ...]
    machines: tuple[MachineRuns, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `verdict.json` holds it: plain values, a number that is not finite as None, seeds as text where they are keys."""
        whole: dict[str, Any] = {
            "unit": self.design.unit,
            "amount": self.design.amount,
            "confidence": self.design.confidence,
            "base": self.design.base,
            "seeds": self.seeds,
            "sequential": self.design.sequential,
            "statement": self.statement,
            "arms": {name: _arm(arm) for name, arm in self.arms.items()},
            "comparisons": [
                {**asdict(one), "sentence": words} for one, words in zip(self.comparisons, self.sentences, strict=True)
            ],
        }
        if self.machines:
            whole["machines"] = [asdict(one) for one in self.machines]
        return {key: _plain(value) for key, value in whole.items()}


def _arm(arm: ArmSummary) -> dict[str, Any]:
    row = asdict(arm)
    del row["charged"]  # it is part of total_spent
    if row["tuning"]:
        del row["tuning"]["edges"]
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _off_plan(name: str, arm: ArmSummary, design: Design) -> list[str]:
    """Flags an arm whose runs spent another amount than was planned, equal or not."""
    spent = getattr(arm.spent, design.unit)
    off = 0.0 if spent is None else spent / design.amount - 1
    if abs(off) <= design.tolerance:
        return []
    return [f"'{name}' spent {abs(off) * 100:.1f} % {'more' if off > 0 else 'less'} {design.unit} a run than planned"]


def judge(records: Sequence[RunRecord], design: Design) -> Verdict:
    """The verdict on the runs of a comparison, all of them or those made so far.

    Raises: ShoestringError for runs that are no part of the design.
    """
    check(records, design)
    arms = {arm: summarise(records, design, arm) for arm in design.arms}
    comparisons = []
    for candidate in design.candidates:
        one = compare(records, design, candidate)
        more = [flag for arm in (candidate, design.base) for flag in _off_plan(arm, arms[arm], design)]
        comparisons.append(replace(one, flags=(*one.flags, *more)))
    ran = {seed for arm in design.arms for seed in judged(records, arm)}
    return Verdict(
        design=design,
        seeds=tuple(seed for seed in design.all_seeds if seed in ran),
        statement=statement(tuple(comparisons), design),
        arms=arms,
        comparisons=tuple(comparisons),
        sentences=tuple(sentence(one, arms, design) for one in comparisons),
        machines=MachineRuns.of(records),
    )
