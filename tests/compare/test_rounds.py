"""Rounds with a clock that is not real: what is called between equal decoders, and what a planted slow-down needs."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shoestring.budget.charge import Charge
from shoestring.compare.decoding_verdict import judge_rounds
from shoestring.compare.outcome import ArmOutcome, Terms
from shoestring.compare.rounds import ComparedRound, Done, RoundLog, Rounds, check_rounds, conduct_rounds, interleaved
from shoestring.compare.weighing import weigh
from shoestring.errors import ShoestringError, UsageError

SPEED = Terms("seconds/written", "ratio", keep="text")
TOKENS = 64


class Machine:
    """A clock, and decoders that move it: items differ in what a token takes, the machine grows slower, and has its hiccups.

    slower: of each arm, how many times as long it takes. noise: the standard deviation of a logarithm of a time.
    """

    def __init__(self, seed: int, items: int, slower: dict[str, float], noise: float = 0.05) -> None:
        self.now, self.draw, self.slower, self.noise = 0.0, np.random.default_rng(seed), slower, noise
        self.hard = self.draw.lognormal(-4, 0.4, size=items)
        self.calls: list[tuple[str, int]] = []

    def clock(self) -> float:
        return self.now

    def prepare(self, arm: str, item: int) -> "Work":
        self.now += 0.3  # on nobody's account
        return Work(self, arm, item)

    def __call__(self, arms: Sequence[str], seed: int) -> list[ArmOutcome]:
        return interleaved(arms, len(self.hard), seed, self.prepare, self.clock)


class Work:
    def __init__(self, machine: Machine, arm: str, item: int) -> None:
        self.machine, self.arm, self.item = machine, arm, item

    def do(self) -> None:
        machine = self.machine
        hiccup = 3.0 if machine.draw.random() < 0.01 else 1.0
        busy = 1 + 0.3 * math.sin(len(machine.calls) / 40) + len(machine.calls) / 2000
        taken = TOKENS * machine.hard[self.item] * machine.slower[self.arm] * busy * hiccup
        machine.now += taken * machine.draw.lognormal(0, machine.noise)
        machine.calls.append((self.arm, self.item))

    def done(self) -> Done:
        self.machine.now += 0.2
        return Done(TOKENS, f"text {self.item}", Charge(written=TOKENS, flops=1000, wasted=5), {"loss": 1.5})


def verdict(machine: Machine, seeds: tuple[int, ...] = (0,)) -> str:
    arms = tuple(machine.slower)
    outcomes = [outcome for seed in seeds for outcome in machine(arms, seed)]
    return weigh(outcomes, SPEED, arms[0], arms[1]).verdict


def test_equal_decoders_are_told_apart_at_most_one_time_in_twenty() -> None:
    runs = 400
    called = sum(verdict(Machine(seed, 30, {"a": 1.0, "b": 1.0})) in ("better", "worse") for seed in range(runs))
    assert called <= 0.05 * runs + 2 * math.sqrt(runs * 0.05 * 0.95)


def test_a_slow_down_of_two_percent_is_found_with_enough_items() -> None:
    found = [verdict(Machine(seed, 1500, {"a": 1.0, "b": 1.02})) for seed in range(12)]
    assert found.count("worse") >= 11
    assert "better" not in found
    few = [verdict(Machine(seed, 10, {"a": 1.0, "b": 1.02})) for seed in range(40)]
    assert few.count("worse") <= 20  # which ten items cannot show


def test_how_many_items_are_enough_is_told() -> None:
    machine = Machine(1, 60, {"a": 1.0, "b": 1.02})
    rounds = Rounds(("a", "b"), (0,), 60, SPEED)
    (one,) = judge_rounds(machine(("a", "b"), 0), rounds).comparisons
    needed = judge_rounds(machine(("a", "b"), 1), rounds).to_json()["comparisons"][0]["items_needed"]
    assert one.found.minimum_detectable_effect is not None
    assert 0.01 < one.found.minimum_detectable_effect < 0.15
    assert needed is None or needed > 3


def test_arms_take_turns_on_each_item() -> None:
    machine = Machine(0, 6, {"a": 1.0, "b": 1.0, "c": 1.0})
    outcomes = machine(("a", "b", "c"), 1)
    assert [item for _, item in machine.calls] == [item for item in range(6) for _ in range(3)]
    firsts = [machine.calls[3 * item][0] for item in range(6)]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]
    assert [outcome.arm for outcome in outcomes] == ["a", "b", "c"]


def test_only_the_work_is_on_the_clock() -> None:
    machine = Machine(0, 4, {"a": 1.0, "b": 2.0}, noise=0.0)
    machine.draw = np.random.default_rng(0)
    one, other = machine(("a", "b"), 0)
    for outcome in (one, other):
        assert outcome.spent["seconds"] == pytest.approx(TOKENS * sum(outcome.items["seconds/written"]))
        assert outcome.items["flops/written"] == (1000 / TOKENS,) * 4
        assert outcome.items["wasted/written"] == (5 / TOKENS,) * 4
        assert (outcome.items["loss"], outcome.spent["written"]) == ((1.5,) * 4, 4 * TOKENS)
        assert outcome.texts == tuple(f"text {item}" for item in range(4))
    assert machine.now == pytest.approx(one.spent["seconds"] + other.spent["seconds"] + 8 * 0.5)


def test_seeds_repeat_items_and_narrow_the_interval() -> None:
    def width(seeds: tuple[int, ...]) -> float:
        machine = Machine(2, 40, {"a": 1.0, "b": 1.0})
        outcomes = [outcome for seed in seeds for outcome in machine(("a", "b"), seed)]
        interval = weigh(outcomes, SPEED, "a", "b").found.interval
        assert interval is not None
        return interval[1] - interval[0]

    assert width((0, 1, 2, 3, 4, 5, 6, 7)) < 0.6 * width((0,))


def test_a_comparison_goes_on_where_it_was(tmp_path: Path, said: list[str]) -> None:
    rounds, path = Rounds(("a", "b"), (0, 1, 2), 5, SPEED), tmp_path / "rounds.jsonl"

    class Killed(Machine):
        def __call__(self, arms: Sequence[str], seed: int) -> list[ArmOutcome]:
            if seed == 2:
                raise KeyboardInterrupt
            return super().__call__(arms, seed)

    with pytest.raises(KeyboardInterrupt):
        conduct_rounds(rounds, Killed(0, 5, {"a": 1.0, "b": 1.0}), RoundLog(path))
    before = RoundLog(path).read()
    assert [each.seed for each in before] == [0, 1]
    said.clear()
    outcomes = conduct_rounds(rounds, Machine(1, 5, {"a": 1.0, "b": 1.0}), RoundLog(path))
    assert said == ["seed 2, 3 of 3: 5 items by a, b"]
    assert RoundLog(path).read()[:2] == before
    assert [(o.seed, o.arm) for o in outcomes] == [(s, a) for s in (0, 1, 2) for a in "ab"]
    assert judge_rounds(outcomes, rounds).to_json()["comparisons"][0]["items"] == 5


def test_rounds_of_another_comparison_are_refused(tmp_path: Path) -> None:
    done = [ComparedRound(0, tuple(Machine(0, 5, {"a": 1.0, "b": 1.0})(("a", "b"), 0)))]
    for rounds, said in (
        (Rounds(("a", "b"), (1,), 5, SPEED), "seed 0, which is not of this comparison"),
        (Rounds(("b", "a"), (0,), 5, SPEED), "not of the arms b, a"),
        (Rounds(("a", "b"), (0,), 6, SPEED), "not of 6 items"),
    ):
        with pytest.raises(ShoestringError, match=said):
            check_rounds(rounds, done)
    path = tmp_path / "rounds.jsonl"
    whole = json.loads(json.dumps(dataclasses.asdict(done[0])))
    uneven = {**whole["outcomes"][0], "items": {"x": [1.0], "y": [1.0, 2.0]}, "texts": []}
    twice = f"{json.dumps(whole)}\n{json.dumps(whole)}\n"
    path.write_text(twice + '{"torn')
    with pytest.raises(ShoestringError, match="line 2, is damaged: the same run stands above it"):
        RoundLog(path)
    path.write_text(json.dumps(whole) + '\n{"torn')
    assert RoundLog(path).read() == done
    for wrong, said in (
        ({**whole, "outcomes": [uneven]}, "different numbers of items"),
        ({"seed": 0}, "not a round"),
        ({**whole, "seed": "0"}, "seed"),
        ([], "not a round"),
    ):
        path.write_text(json.dumps(wrong) + "\n")
        with pytest.raises(ShoestringError, match=said):
            RoundLog(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"arms": ("a",)},
        {"arms": ("a", "a")},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"items": 0},
        {"confidence": 1.0},
    ],
)
def test_a_comparison_of_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(Rounds(("a", "b"), (0,), 3, SPEED), **wrong)  # type: ignore[arg-type]


def test_the_verdict_says_what_was_found() -> None:
    def said(slower: float, items: int = 60, texts: str = "") -> str:
        outcomes = Machine(3, items, {"plain": 1.0, "drafts": slower})(("plain", "drafts"), 0)
        if texts:
            outcomes[1] = dataclasses.replace(outcomes[1], texts=(texts, *outcomes[1].texts[1:]))
        return judge_rounds(outcomes, Rounds(("plain", "drafts"), (0,), items, SPEED)).statement

    assert said(0.5).startswith("drafts is better than plain: it takes ")
    assert "% less time a written token (95 % interval -" in said(0.5)
    assert said(0.5).endswith("; 60 items, 1 seed).")
    assert said(2.0).startswith("drafts is worse than plain: it takes ")
    assert "no difference shown" in said(1.0)
    assert "in 4 of 5 cases" in said(1.0)
    assert "not comparable. 1.7% of the texts are not the base's" in said(0.5, texts="other")
    assert "too few pairs" in said(0.5, items=2)
