"""Comparing round by round: all arms on all items at a seed, in turns, and the file that keeps it.

Within a round each item is done by every arm before the next item begins, and the arms take turns in going first. A machine that
grows slower or busier by the minute then favours none. A round that was stopped is done again whole.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, Protocol

import pydantic

from shoestring.budget.charge import NOTHING, Charge
from shoestring.compare.conduct import rotated
from shoestring.compare.log import Log
from shoestring.compare.outcome import ArmOutcome, Bench, Terms
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import parse_json

log = logging.getLogger(__name__)

Clock = Callable[[], float]
"""Seconds from some beginning, as `time.perf_counter` gives them."""


class Done(NamedTuple):
    """What an arm did with an item.

    tokens: that it chose, of all texts of the item, those that end them among them.
    text: a digest of what it wrote.
    spent: what it took.
    figures: what else was measured, by name; lower is better.
    """

    tokens: int
    text: str
    spent: Charge
    figures: Mapping[str, float] = {}


class PreparedItem(Protocol):
    """An item that is ready to be done by an arm."""

    def do(self) -> None:
        """Do it: the clock runs."""
        ...

    def done(self) -> Done:
        """What came of it: the clock does not run any more."""
        ...


SPENT = ("flops", "moved", "read", "wasted")
"""Of a charge, what is also told for each written token."""


def interleaved(
    arms: Sequence[str],
    items: int,
    seed: int,
    prepare: Callable[[str, int], PreparedItem],
    clock: Clock = time.perf_counter,
) -> list[ArmOutcome]:
    """What the arms do with each item, and in what time.

    prepare: (arm, item) to the work; what it takes to prepare is on nobody's clock.
    """
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    done: dict[str, list[Done]] = {arm: [] for arm in arms}
    for item in range(items):
        for arm in rotated(arms, seed + item):
            work = prepare(arm, item)
            began = clock()
            work.do()
            seconds[arm].append(clock() - began)
            done[arm].append(work.done())
    return [_outcome(arm, seed, seconds[arm], done[arm]) for arm in arms]


def _outcome(arm: str, seed: int, seconds: Sequence[float], done: Sequence[Done]) -> ArmOutcome:
    tokens = [max(each.tokens, 1) for each in done]
    items = {"seconds/written": tuple(s / n for s, n in zip(seconds, tokens, strict=True))}
    for name in SPENT:
        items[f"{name}/written"] = tuple(getattr(e.spent, name) / n for e, n in zip(done, tokens, strict=True))
    for name in done[0].figures if done else ():
        items[name] = tuple(each.figures[name] for each in done)
    whole = sum((each.spent for each in done), NOTHING)
    spent = {"seconds": sum(seconds), **{name: float(count) for name, count in whole.as_dict().items()}}
    figures = {name: fmean(values) for name, values in items.items()} if done else {}
    return ArmOutcome(arm, seed, figures, spent, items, tuple(each.text for each in done))


@dataclass(frozen=True)
class Rounds:
    """A comparison in rounds, settled before the first.

    arms: names, the base first.
    seeds: one round each.
    items: of a round.
    terms: what is compared.
    confidence: of intervals and verdicts.
    Raises: UsageError.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    items: int
    terms: Terms
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms):
            raise UsageError("a comparison needs a base and at least one candidate, all of different names")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError("a comparison needs at least one seed, and none twice")
        if self.items < 1:
            raise UsageError("a comparison needs at least one item")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"a confidence of {self.confidence:g} is not in [0.5, 1): 0.95 is usual")

    @property
    def base(self) -> str:
        """Against which each other arm is judged."""
        return self.arms[0]


@dataclass(frozen=True)
class ComparedRound:
    """One that is done. outcomes: of each arm."""

    seed: int
    outcomes: tuple[ArmOutcome, ...]

    @property
    def key(self) -> int:
        """What tells it from every other."""
        return self.seed


_CHECKED = pydantic.TypeAdapter(ComparedRound)
_FIELDS = {each.name for each in dataclasses.fields(ComparedRound)}


class RoundLog(Log[ComparedRound]):
    """The rounds of a comparison in the order they were done."""

    def parse(self, line: bytes) -> ComparedRound:
        """As `Log.parse`."""
        row = parse_json(line)
        if not isinstance(row, dict) or row.keys() != _FIELDS:
            raise ValueError("not a round")
        try:
            return _CHECKED.validate_json(line, strict=True)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def conduct_rounds(rounds: Rounds, bench: Bench, round_log: RoundLog) -> list[ArmOutcome]:
    """Do every round that the log does not hold. Returns all outcomes.

    Raises: ShoestringError when the log holds what is no part of the comparison; and what the bench raises.
    """
    check_rounds(rounds, round_log.read())
    done = {each.seed for each in round_log.read()}
    for place, seed in enumerate(rounds.seeds):
        if seed not in done:
            log.info(
                f"seed {seed}, {place + 1} of {len(rounds.seeds)}: {rounds.items} items by {', '.join(rounds.arms)}"
            )
            round_log.append(ComparedRound(seed, tuple(bench(rounds.arms, seed))))
    check_rounds(rounds, round_log.read())
    return [outcome for each in round_log.read() for outcome in each.outcomes]


def check_rounds(rounds: Rounds, done: Sequence[ComparedRound]) -> None:
    """Raises: ShoestringError for a round that is no part of the comparison."""
    for each in done:
        if each.seed not in rounds.seeds:
            raise ShoestringError(f"there is a round at seed {each.seed}, which is not of this comparison")
        if tuple(outcome.arm for outcome in each.outcomes) != rounds.arms:
            raise ShoestringError(f"the round at seed {each.seed} is not of the arms {', '.join(rounds.arms)}")
        for outcome in each.outcomes:
            if outcome.seed != each.seed or any(len(v) != rounds.items for v in outcome.items.values()):
                raise ShoestringError(f"the round at seed {each.seed} is not of {rounds.items} items")
