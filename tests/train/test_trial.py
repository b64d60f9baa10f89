"""Plans go by steps of the planned shape that were really taken, and the ledger has what that cost."""

import time
from pathlib import Path
from typing import Any

import pytest

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine
from shoestring.config import build
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.launch.request import TrainingRequest, tried
from shoestring.plan.pace import Pace
from shoestring.train import starting, trial
from shoestring.train.config import RunConfig
from shoestring.train.settling import Execution
from shoestring.train.trial import allowed, try_out
from tests.train.command import TINY

MACHINE = Machine("cpu", "a processor", 1, 2**34, (), {"float32": 1e11, "bfloat16": 1e11}, 1e10)


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = DataConfig(corpus=str(corpus), tokenizer="bytes", heldout=0.1)
    return prepare(config, tmp_path_factory.mktemp("cache"))


def request_for(budget: str, *more: str) -> TrainingRequest:
    return TrainingRequest.read(None, [f"--budget={budget}", "--execution.device=cpu", *TINY, *more])


def config_for(budget: str, dataset: Dataset) -> RunConfig:
    asked = request_for(budget).asked
    asked["model"]["vocabulary"] = dataset.tokenizer.vocabulary
    return build(RunConfig, asked)


def test_a_trial_tells_what_steps_take_and_is_on_the_ledger(dataset: Dataset) -> None:
    config = config_for("60s", dataset)
    ledger = Ledger()
    began = time.monotonic()
    pace = try_out(config, dataset, MACHINE, ledger, 6.0, 60.0)
    took = time.monotonic() - began
    assert pace is not None
    assert pace.measured
    assert 0 < pace.per_token * config.train.batch * config.model.context < took
    assert pace.forward_share > 0
    assert pace.memory is not None
    assert pace.memory > 1e8
    seconds = ledger.totals.seconds
    assert {"measure", "start"} <= seconds.keys()
    assert 0 < seconds["measure"] + seconds["start"] <= took
    assert ledger.totals.tokens == 0  # nothing of it is in the model


def test_without_the_time_for_a_step_nothing_is_tried(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "assemble", lambda *given: pytest.fail("it has begun to work"))
    assert try_out(config_for("60s", dataset), dataset, MACHINE, Ledger(), 1e-6, 60.0) is None


@pytest.mark.parametrize(
    ("budget", "expected", "left", "seconds"),
    [(40.0, 40.0, 30.0, 4.0), (40.0, 40.0, 2.0, 1.0), (36e3, 36e3, 36e3, 10.0), (None, 3.3, 3.3, 0.33)],
)
def test_a_trial_may_take_a_share_of_the_run(
    budget: float | None, expected: float, left: float, seconds: float
) -> None:
    assert allowed(budget, expected, left) == pytest.approx(seconds)
    assert allowed(budget, expected, left, used=1e5) == 0.0


def test_a_shape_that_turns_out_slow_is_planned_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [word for word in TINY if not word.startswith(("--model", "--train.batch"))]
    request = TrainingRequest.read(None, ["--budget=600s", "--execution.device=cpu", *asked])
    shapes: list[tuple[int, int]] = []

    def try_out(config: RunConfig, dataset: Any, machine: Machine, ledger: Any, seconds: float, *more: Any) -> Pace:
        shapes.append((config.model.layers, config.model.width))
        return Pace(1e-3 * config.model.layers, 0.3, 0.1, measured=True)

    monkeypatch.setattr("shoestring.launch.request.try_out", try_out)
    monkeypatch.setattr("shoestring.plan.rules.MOST_WEIGHTS", 1e6)  # of so little text no large one would be planned
    made, config = tried(request, MACHINE, dataset, Ledger())
    assert len(set(shapes)) > 1  # the first was chosen by rule, which expects much more
    assert shapes[0] > shapes[-1]
    assert made.pace.measured
    assert (config.model.layers, config.model.width) == shapes[-1]
    assert made.tokens == pytest.approx(600 / (1e-3 * config.model.layers), rel=0.1)


@pytest.mark.parametrize(
    ("budget", "expected", "seconds", "allowed"), [("100ktok", 50.0, 50.0, 5.0), ("40s", 500.0, 40.0, 4.0)]
)
def test_a_budget_without_seconds_is_settled_by_those_expected(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, budget: str, expected: float, seconds: float, allowed: float
) -> None:
    given: dict[str, Any] = {}

    def settle(config: Any, model: Any, **more: Any) -> Execution:
        given.update(more)
        return Execution(config, ())

    monkeypatch.setattr(starting, "settle", settle)
    starting.resolve(config_for(budget, dataset), dataset, MACHINE, Ledger(clock=lambda: 0.0), expected)
    assert given["seconds"] == seconds
    assert given["allowance"].seconds == pytest.approx(allowed)
