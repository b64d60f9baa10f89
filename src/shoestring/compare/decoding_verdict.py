"""What a comparison of ways to decode found, in figures and in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from shoestring.compare.outcome import TEXT, ArmOutcome
from shoestring.compare.rounds import Rounds
from shoestring.compare.statistics import Paired, pairs_needed
from shoestring.compare.weighing import Weighed, weigh
from shoestring.compare.wording import percentage


@dataclass(frozen=True)
class DecodingVerdict:
    """rounds: what was planned. arms: the mean of each figure over seeds and items. comparisons: of each candidate."""

    rounds: Rounds
    arms: Mapping[str, Mapping[str, float]]
    comparisons: tuple[Weighed, ...]

    @property
    def statement(self) -> str:
        """All comparisons in a line."""
        return " ".join(sentence(one) for one in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        """As verdict.json has it."""
        return {
            "bench": "decode",
            "base": self.rounds.base,
            "seeds": list(self.rounds.seeds),
            "items": self.rounds.items,
            "confidence": self.rounds.confidence,
            "terms": asdict(self.rounds.terms),
            "statement": self.statement,
            "arms": {name: dict(figures) for name, figures in self.arms.items()},
            "comparisons": [_row(one) for one in self.comparisons],
        }


def judge_rounds(outcomes: Sequence[ArmOutcome], rounds: Rounds) -> DecodingVerdict:
    """The verdict on all rounds that are done."""
    arms = {}
    for arm in rounds.arms:
        own = [outcome for outcome in outcomes if outcome.arm == arm and not outcome.failure]
        arms[arm] = {name: fmean(each.figures[name] for each in own) for name in (own[0].figures if own else ())}
    return DecodingVerdict(
        rounds,
        arms,
        tuple(weigh(outcomes, rounds.terms, rounds.base, arm, rounds.confidence) for arm in rounds.arms[1:]),
    )


def _row(one: Weighed) -> dict[str, Any]:
    found = one.found
    return {
        "candidate": one.candidate,
        "base": one.base,
        "verdict": one.verdict,
        "seeds": one.seeds,
        "items": one.items,
        "ratio": _ratio(found.difference),
        "interval": None if found.interval is None else [_ratio(end) for end in found.interval],
        "p_value": found.p_value,
        "minimum_detectable_ratio": _ratio(found.minimum_detectable_effect),
        "items_needed": needed(found),
        "changed": one.changed,
        "kept": None if one.kept is None else {"difference": one.kept.difference, "interval": one.kept.interval},
        "flags": list(one.flags),
        "sentence": sentence(one),
    }


def needed(found: Paired) -> int | None:
    """Items that would show a difference of the size observed, 4 times of 5; None where that is not known."""
    if not found.difference or not found.standard_deviation or found.constant:
        return None
    return pairs_needed(found.difference, found.standard_deviation, found.confidence)


def _ratio(log: float | None) -> float | None:
    return None if log is None else math.exp(log)


def change(log: float) -> str:
    """A logarithm of a ratio of seconds in words: '12.3 % less time'."""
    share = math.exp(log) - 1
    return f"{abs(share) * 100:.1f} % {'less' if share < 0 else 'more'} time"


def sentence(one: Weighed) -> str:
    """One comparison in a few sentences."""
    name = f"{one.candidate} against {one.base}"
    found = one.found
    if one.verdict == "not comparable":
        return f"{name}: not comparable. {one.flags[-1]}." if one.flags else f"{name}: not comparable."
    if found.difference is None:
        return f"{name}: nothing was measured."
    over = f"{one.items} item{'s' * (one.items != 1)}, {one.seeds} seed{'s' * (one.seeds != 1)}"
    words = f"it takes {change(found.difference)} a written token"
    if found.interval is not None:
        low, high = (f"{(math.exp(end) - 1) * 100:+.1f}" for end in found.interval)
        words += f" ({percentage(found.confidence)} interval {low} to {high} %; {over})"
    else:
        words += f" ({over}, no interval)"
    if one.verdict in ("better", "worse"):
        return f"{one.candidate} is {one.verdict} than {one.base}: {words}."
    unsure = ""
    if one.verdict == "no difference shown" and found.minimum_detectable_effect is not None:
        least = (math.exp(found.minimum_detectable_effect) - 1) * 100
        unsure = f" These items would show a difference of {least:.1f} % in 4 of 5 cases"
        more = needed(found)
        unsure += f"; one of the size observed needs {more} items." if more is not None else "."
    return f"{name}: {one.verdict}; {words}.{unsure}"


def kept(rounds: Rounds) -> str:
    """What must not be given up, in words."""
    terms = rounds.terms
    if terms.keep is None:
        return "whatever it writes"
    return "the same text" if terms.keep == TEXT else f"{terms.keep} within {terms.margin:g}"
