"""A ladder of tiny runs: within its allowance, kept where plans look, and gone on with where it was killed."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from shoestring.config import merge, overrides
from shoestring.errors import UsageError
from shoestring.launch.ladder import Ladder
from shoestring.launch.view import LogView
from shoestring.plan.ladder import LadderRun
from shoestring.plan.memory import kept, learned_runs
from tests.jobs.losing import Losing
from tests.own_cache import own_cache
from tests.train.command import TINY

COMMON = ("layers", "width", "heads", "batch")
FLAGS = [flag for flag in TINY if flag.partition("=")[0].rpartition(".")[2] not in COMMON]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache(tmp_path / "cache", monkeypatch)


def rung(name: str, seconds: float = 1.0, rate: float = 1.0, tokens: int = 2048) -> LadderRun:
    return LadderRun(name, 1, 32, 16, 32, tokens, 4, rate, seconds)


def write(path: Path, corpus: Path, *rungs: LadderRun, allowance: float = 1000.0) -> Ladder:
    asked = merge(overrides([f"--data.corpus={corpus}", *FLAGS]), {"train": {"checkpoint_every": 1e-3}})
    return Ladder.write(path, rungs, asked, allowance, 1)


class Killed(BaseException):
    """Ends a run as a signal does that cannot be caught."""


def loss(ladder: Ladder, name: str) -> float:
    return float(json.loads((ladder.path / name / "summary.json").read_text())["heldout_loss"])


def test_a_killed_ladder_goes_on_to_the_same_losses(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "whole", corpus, rung("a"), rung("b", rate=2.0))
    climbed = whole.climb()
    assert (climbed.done, climbed.left, climbed.failed, climbed.stopped) == (2, 0, {}, None)
    assert climbed.seconds > 0
    torn = write(tmp_path / "torn", corpus, rung("a"), rung("b", rate=2.0))
    lines = list[Any]()

    def show(view: LogView, line: Any) -> None:
        lines.append(line)
        if len(lines) > 1:
            raise Killed

    with monkeypatch.context() as killing:
        killing.setattr(LogView, "show", show)
        with pytest.raises(Killed):
            torn.climb()
    assert not torn.finished(torn.rungs[0])
    assert any((torn.path / "a" / "checkpoints").glob("step-*"))
    again = Ladder(torn.path).climb()
    assert again.done == 2
    assert [loss(torn, name) for name in "ab"] == [loss(whole, name) for name in "ab"]
    afar = write(tmp_path / "afar", corpus, rung("a"), rung("b", rate=2.0))
    losing = Losing(tmp_path / "machines", {"run 1 of 2: a": 1})
    assert afar.climb(losing).done == 2
    assert losing.begun.count("run 1 of 2: a") == 2
    assert [loss(afar, name) for name in "ab"] == [loss(whole, name) for name in "ab"]
    assert not any(afar.path.glob("*/checkpoints"))
    kept_ones = [line for line in kept(learned_runs()) if line.get("ladder")]
    assert len(kept_ones) == 6
    assert {line["optimizer"] for line in kept_ones} == {"muon_hypersphere"}
    assert {line["row"]["learning_rate"] for line in kept_ones} == {0.04, 0.08}
    assert not (whole.path / "a" / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["train", "heldout"])
def test_a_signal_stops_it_in_a_run_and_at_its_end(
    kind: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder, show = write(tmp_path / "ladder", corpus, rung("a"), rung("b")), LogView.show

    def signalled(view: LogView, line: Any) -> None:
        show(view, line)
        if line["kind"] == kind:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as asking:
        asking.setattr(LogView, "show", signalled)
        climbed = ladder.climb()
    assert (climbed.done, climbed.stopped) == (int(kind == "heldout"), signal.SIGTERM)
    assert not (ladder.path / "b").exists()
    again = Ladder(ladder.path).climb()
    assert (again.done, again.stopped) == (2, None)


def test_what_does_not_fit_is_left(corpus: Path, tmp_path: Path) -> None:
    ladder = write(tmp_path / "ladder", corpus, rung("a", seconds=40.0), rung("b", seconds=400.0), allowance=100.0)
    climbed = ladder.climb()
    assert (climbed.done, climbed.left) == (1, 1)
    assert not (ladder.path / "b").exists()


def test_a_run_that_fails_does_not_end_the_ladder(corpus: Path, tmp_path: Path) -> None:
    ladder = write(tmp_path / "ladder", corpus, rung("wild", rate=1e7), rung("tame"))
    climbed = ladder.climb()
    assert climbed.done == 1
    assert list(climbed.failed) == ["wild"]
    assert Ladder(ladder.path).climb().failed == climbed.failed


def test_what_cannot_be_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no ladder"):
        Ladder(tmp_path)
    ladder = write(tmp_path / "ladder", corpus, rung("a"))
    with pytest.raises(UsageError, match="not empty"):
        Ladder.begin(ladder.path, {}, 60.0, 1)
    for asked, said in (
        ({"model": {"width": 64}}, "model.width differs from run to run"),
        ({"optim": {"name": "muon", "lr": 0.1}}, "optim.lr differs"),
        ({"optim": "sgd"}, "needs rates to begin with"),
    ):
        with pytest.raises(UsageError, match=said):
            Ladder.begin(tmp_path / "new", asked, 60.0, 1)
    assert not (tmp_path / "new").exists()
