"""A budget in seconds is kept on a slow machine and on one that becomes slow. Time is told here by a clock that the steps and
evaluations set themselves."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shoestring.budget.budget import Budget
from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL, Ledger, Totals
from shoestring.contract.objective import At
from shoestring.train import loop as loop_module
from shoestring.train.evaluate import Heldout
from shoestring.train.loop import Loop, NothingTrained
from shoestring.train.sections import TrainConfig
from shoestring.train.settling import Execution
from shoestring.train.speed import Speed
from shoestring.train.step import StepResult
from shoestring.train.vote import Vote
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring

SEQUENCES, TARGETS = 4, 128


@dataclass
class Slow:
    """A machine on which a step takes `step` seconds, times `factor` from second `since` on, and evaluating a window `window`."""

    step: float
    window: float
    first: float = 0.0
    factor: float = 1.0
    since: float = 1e9
    now: float = 0.0
    noise_scale: None = None
    leads: bool = True
    model: Any = None
    sequences: int = 100
    steps: int = 0
    lines: list[Mapping[str, Any]] = field(default_factory=list)

    def passes(self, seconds: float) -> None:
        self.now += seconds * (self.factor if self.now >= self.since else 1.0)

    # the stepper

    def spent(self, own: Totals) -> Totals:
        return own

    def at(self, step: int) -> int:
        return step

    def decide(self, step: int, vote: Vote) -> Vote:
        return vote

    def agree(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def gradients(self, batch: Any, at: At) -> StepResult:
        self.passes(self.step + (0 if self.steps else self.first))
        self.steps += 1
        return StepResult(1.0, 1.0, 1.0, TARGETS, {MODEL: Charge(flops=1, tokens=TARGETS)})

    def apply(self, factor: float) -> None:
        pass

    def figures(self) -> dict[str, float]:
        return {}

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        yield

    # the evaluator

    def __call__(self, model: Any, enough: Callable[[], bool] = lambda: False) -> Heldout:
        read = 0
        while read < self.sequences and not (read and enough()):
            self.passes(self.window * SEQUENCES)
            read += SEQUENCES
        return Heldout(1.0, 1.0, read * TARGETS, read, read < self.sequences)

    def loop(
        self, seconds: float | None, spent: Mapping[str, float] | None = None, old: Any = None, **more: Any
    ) -> Loop:
        ledger = Ledger(clock=lambda: self.now)
        for cause, took in (spent or {}).items():
            with ledger.clock(cause):
                self.now += took
        budget = Budget(seconds=seconds) if seconds else Budget(tokens=50 * TARGETS)
        schedule: Any = Constant()
        return Loop(
            worker=self,  # type: ignore[arg-type]
            company=self,  # type: ignore[arg-type]
            schedule=schedule,
            source=SimpleNamespace(batch=lambda start, count: None),
            evaluator=self,  # type: ignore[arg-type]
            budget=budget,
            ledger=ledger,
            settings=TrainConfig(**more),
            sequences=lambda progress: SEQUENCES,
            milestones=(),
            milestone=lambda share, heldout: None,
            record=self.lines.append,
            checkpoint=lambda: self.passes(0.02),
            speed=Speed(seconds, evaluated=self.sequences, sampling=0.2, saving=0.02),
            old=old,
        )

    def train(self, seconds: float, spent: Mapping[str, float] | None = None, **more: Any) -> float:
        """A whole run, final evaluation and checkpoint included. Returns what it spent."""
        made = self.loop(seconds, spent, **more)
        assert made.run(SimpleNamespace(asked=None)) == "finished"  # type: ignore[arg-type]
        made.evaluate(last=True)
        made.save()
        return made.ledger.totals.wall_clock

    def heldout(self) -> list[Mapping[str, Any]]:
        return [line for line in self.lines if line["kind"] == "heldout"]


class Constant:
    def __call__(self, progress: float) -> float:
        return 1.0

    @contextmanager
    def step(self, progress: float) -> Iterator[None]:
        yield

    def switches(self, before: float, progress: float) -> bool:
        return False


MACHINES = {
    "quiet": Slow(0.1, 0.002),
    "a slow first step": Slow(0.1, 0.002, first=4.0),
    "evaluations of most of the budget": Slow(0.1, 0.25),
    "slow steps": Slow(1.5, 0.15, sequences=8),
    "busy from the middle on": Slow(0.1, 0.002, factor=5.0, since=12.0),
    "busy at the very end": Slow(0.1, 0.002, factor=5.0, since=18.8),
    "free from the middle on": Slow(0.5, 0.01, factor=0.2, since=10.0),
}


@pytest.mark.parametrize("seconds", [20.0, 120.0])
@pytest.mark.parametrize("name", MACHINES)
def test_a_budget_is_kept_whatever_the_machine_does(name: str, seconds: float) -> None:
    given = MACHINES[name]
    machine = replace(given, since=given.since * seconds / 20, lines=[])
    spent = machine.train(seconds, {"data": 2.0, "measure": 1.0})
    assert spent <= seconds * (1.05 if seconds <= 20 else 1.02)
    assert spent >= seconds * 0.75 - given.first or name == "evaluations of most of the budget"
    assert machine.steps > 0
    assert machine.heldout()


@pytest.mark.parametrize("name", ["quiet", "evaluations of a twentieth", "busy from the middle on"])
def test_what_is_set_against_the_start_is_of_the_same_windows(name: str) -> None:
    given = {"evaluations of a twentieth": Slow(0.1, 0.01), **MACHINES}[name]
    machine = replace(given, lines=[])
    made = machine.loop(20.0, old=replace(given, lines=[]))
    assert made.run(SimpleNamespace(asked=None)) == "finished"  # type: ignore[arg-type]
    made.evaluate(last=True)
    read = {(line["targets"], line["old_targets"]) for line in machine.heldout()}
    assert len(read) == 1
    if name != "busy from the middle on":  # there the last evaluation takes its time all the same
        assert 0.75 * 20.0 <= made.ledger.totals.wall_clock <= 1.05 * 20.0


def test_an_evaluation_that_takes_too_much_is_skipped_and_said(said: list[str]) -> None:
    machine = Slow(0.2, 0.02)
    machine.train(20.0)
    assert [line.get("cut_short", False) for line in machine.heldout()] == [False]  # the last one alone, and whole
    assert len(said) == 3
    assert "skipped: it would take" in said[0]
    assert "--train.heldout_tokens" in said[0]


def test_an_evaluation_that_becomes_slow_is_cut_short_and_said(said: list[str]) -> None:
    machine = Slow(0.1, 0.002)
    made = machine.loop(60.0)
    for _ in range(4):
        made._step(0.1)
    machine.factor, machine.since = 50.0, 0.0
    began = machine.now
    made.evaluate()
    assert machine.now - began < 0.06 * 60
    (line,) = machine.heldout()
    assert line["cut_short"]
    assert 0 < line["targets"] < machine.sequences * TARGETS
    assert "cut short" in said[0]


def test_no_evaluation_is_made_twice_of_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoestring.train.speed.EVALUATING", 1.0)  # they take a tenth of the budget each
    for step in (0.03, 0.04, 0.05, 0.06, 0.08):
        machine = Slow(step, 0.004)
        machine.train(4.0, evaluate_every=0.02)
        steps = [line["step"] for line in machine.heldout()]
        assert len(steps) > 2
        assert len(set(steps)) == len(steps)


def test_without_seconds_nothing_is_skipped_or_cut_short(said: list[str]) -> None:
    machine = Slow(1.0, 500.0)
    made = machine.loop(None)
    assert made.run(SimpleNamespace(asked=None)) == "finished"  # type: ignore[arg-type]
    assert [line["targets"] for line in machine.heldout()] == [machine.sequences * TARGETS] * 3
    assert machine.steps == 50
    assert not said


def test_what_is_kept_back_follows_the_speed_of_the_machine() -> None:
    machine = Slow(0.1, 0.002)
    made = machine.loop(100.0)
    for _ in range(8):
        made._step(0.1)
    made.evaluate()
    quiet = made.speed.evaluation
    assert quiet == pytest.approx(100 * 0.002)
    machine.factor, machine.since = 4.0, 0.0
    for _ in range(8):
        made._step(0.1)
    assert made.speed.evaluation == pytest.approx(4 * quiet)


def test_a_run_of_no_step_fails_and_says_where_the_time_went() -> None:
    made = Slow(1.0, 0.01).loop(22.0, {"measure": 22.0, "data": 1.0})
    with pytest.raises(NothingTrained, match=r"no step was trained.*'measure'.*'data'"):
        made.run(SimpleNamespace(asked=None))  # type: ignore[arg-type]


def test_the_speed_told_is_that_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "LOG_SECONDS", 1.0)
    machine = Slow(0.25, 0.02)  # an evaluation takes eight steps' time
    machine.train(60.0, checkpoint_every=5.0)
    rates = [line["tokens_per_second"] for line in machine.lines if line["kind"] == "train"]
    assert len(rates) > 20
    assert len(machine.heldout()) == 4
    assert rates == pytest.approx([TARGETS / 0.25] * len(rates), rel=0.01)


def test_the_command_of_a_run_of_no_step_fails(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Slow(1.0, 0.01)

    def settle(config: Any, model: Any, **more: Any) -> Execution:
        machine.now += 30.0
        return Execution(config, ())

    monkeypatch.setattr("shoestring.launch.alone.Ledger", partial(Ledger, clock=lambda: machine.now))
    monkeypatch.setattr("shoestring.launch.request.try_out", lambda *given: None)
    monkeypatch.setattr("shoestring.train.starting.settle", settle)
    run = tmp_path / "run"
    device = "--execution.device=cpu"
    status, _, errors = shoestring("train", "--budget=22s", f"--data.corpus={corpus}", "--out", run, device, *TINY)
    assert status == 1
    assert errors.count("\n") == 1
    assert "no step was trained" in errors
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["stopped"], summary["steps"]) == ("failed", 0)
    assert "30.0 s of 'measure'" in summary["reason"]


def test_measuring_is_a_cause_of_its_own_and_nothing_compiles_unasked(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    status, _, errors = shoestring("train", "--budget=2ktok", f"--data.corpus={corpus}", "--out", run, *TINY)
    assert status == 0, errors
    causes = json.loads((run / "summary.json").read_text())["seconds_by_cause"]
    assert {"measure", "start", "compute"} <= causes.keys()
    assert "compile" not in causes
    assert "waiting" in json.loads((run / "environment.json").read_text())
    assert torch.get_num_threads() >= 1
