"""Runs that are taken from an earlier comparison: those that would be made again exactly, and no others."""

import json
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoestring.budget.machine import Machine
from shoestring.compare.conduct import PlannedRun, conduct
from shoestring.compare.design import Design
from shoestring.compare.folder import ComparisonFolder
from shoestring.compare.record import RunLog, RunRecord
from shoestring.compare.reuse import Reused, runs_of
from shoestring.config import build
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig

MACHINE = Machine(
    device="cpu",
    name="a machine",
    threads=2,
    memory=8_000_000_000,
    features=("avx2",),
    matmul={"float32": 1e11},
    bandwidth=1e10,
)
TRIALS = {arm: [{"optim.lr": 0.1}, {"optim.lr": 0.2}] for arm in ("base", "other")}


def config(rate: float) -> RunConfig:
    return build(RunConfig, {"budget": "1ktok", "model": {}, "optim": {"name": "adamw", "lr": rate}})


def design(**changes: object) -> Design:
    plain = {
        "arms": ["base", "other"],
        "seeds": [0, 1],
        "unit": "tokens",
        "amount": 1000.0,
        "tuning": TRIALS,
        "tuning_seed": 9,
    }
    return build(Design, {**plain, **changes})


ARMS = {"base": config(0.1), "other": config(0.3)}


def record(arm: str, seed: int, purpose: str, rate: float, **changes: object) -> RunRecord:
    plain: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "purpose": purpose,
        "settings": {"optim.lr": rate},
        "stopped": "finished",
        "reason": "",
        "loss": 1.0,
        "bits_per_byte": 0.5,
        "seconds": 1.0,
        "flops": 1.0,
        "tokens": 1000,
        "steps": 1,
        "step_seconds": 1.0,
        "peak_memory": 1,
        "parameters": 1,
    }
    return RunRecord(**{**plain, **changes})


def plain_record(arm: str, seed: int, purpose: str) -> RunRecord:
    return record(arm, seed, purpose, 0.0, settings={})


@pytest.fixture
def earlier(tmp_path: Path) -> ComparisonFolder:
    folder = ComparisonFolder(tmp_path / "earlier")
    folder.write(design(), ARMS, MACHINE)
    log = RunLog(folder.records)
    for arm in ARMS:
        for rate in (0.1, 0.2):
            log.append(record(arm, 9, "tune", rate))
        for seed in (0, 1):
            log.append(record(arm, seed, "judge", 0.1))
    return folder


class Made:
    """`Trials` that say what they are asked to make."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []

    def map(self, asked: Iterable[PlannedRun]) -> Generator[RunRecord, None, None]:
        for one in asked:
            self.asked.append((one.arm, one.seed, one.purpose))
            rate = one.settings.get("optim.lr")
            yield record(one.arm, one.seed, one.purpose, rate) if rate else plain_record(one.arm, one.seed, one.purpose)


def made_anew(
    earlier: ComparisonFolder, asked: Design, arms: Mapping[str, RunConfig], tmp_path: Path
) -> list[tuple[str, int, str]]:
    """The runs of a design that are not taken from `earlier`."""
    made = Made()
    before = runs_of(earlier, asked, MACHINE)
    conduct(asked, Reused(made, before, arms), RunLog(tmp_path / "runs.jsonl"))
    return made.asked


def test_the_same_comparison_takes_every_run(earlier: ComparisonFolder, tmp_path: Path) -> None:
    assert made_anew(earlier, design(), ARMS, tmp_path) == []
    assert sorted(r.key for r in RunLog(tmp_path / "runs.jsonl").read()) == sorted(
        r.key for r in RunLog(earlier.records).read()
    )


def test_an_arm_that_changed_in_anything_is_made_anew(earlier: ComparisonFolder, tmp_path: Path) -> None:
    changed = {
        **ARMS,
        "other": replace(ARMS["other"], optim=replace(ARMS["other"].optim, options={"lr": 0.3, "beta1": 0.8})),
    }
    assert {arm for arm, _, _ in made_anew(earlier, design(), changed, tmp_path)} == {"other"}


def test_only_trials_that_were_not_tried_are_made(earlier: ComparisonFolder, tmp_path: Path) -> None:
    tuned = design(tuning={**TRIALS, "base": [{"optim.lr": 0.1}, {"optim.lr": 0.4}]})
    assert made_anew(earlier, tuned, ARMS, tmp_path) == [("base", 9, "tune")]


def test_a_comparison_that_tunes_takes_runs_of_one_that_did_not(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "earlier")
    folder.write(design(tuning={}), ARMS, MACHINE)
    log = RunLog(folder.records)
    for arm in ARMS:
        for seed in (0, 1):
            log.append(plain_record(arm, seed, "judge"))
    # the loss of every trial is the same, so the first is chosen: the base's own rate, and not the other's
    tuned = design(tuning={**TRIALS, "other": [{"optim.lr": 0.5}, {"optim.lr": 0.3}]})
    assert made_anew(folder, tuned, ARMS, tmp_path) == [
        ("base", 9, "tune"),
        ("other", 9, "tune"),
        ("other", 9, "tune"),
        ("base", 9, "tune"),
        ("other", 0, "judge"),
        ("other", 1, "judge"),
    ]


def test_an_arm_takes_the_same_run_of_another_name(earlier: ComparisonFolder, tmp_path: Path) -> None:
    renamed = design(arms=["base", "same"], tuning={"base": TRIALS["base"], "same": TRIALS["base"]})
    arms = {"base": ARMS["base"], "same": ARMS["base"]}
    assert made_anew(earlier, renamed, arms, tmp_path) == []


def test_seeds_that_are_not_judged_and_failed_runs_stay_behind(earlier: ComparisonFolder, tmp_path: Path) -> None:
    RunLog(earlier.records).append(record("base", 2, "judge", 0.1, stopped="failed", loss=None, reason="lost"))
    asked = made_anew(earlier, design(seeds=[1, 2]), ARMS, tmp_path)
    assert sorted(asked) == [("base", 2, "judge"), ("other", 2, "judge")]
    assert {r.seed for r in RunLog(tmp_path / "runs.jsonl").read() if r.purpose == "judge"} == {1, 2}


def test_what_cannot_be_the_same_is_refused(earlier: ComparisonFolder) -> None:
    with pytest.raises(UsageError, match="side by side"):
        runs_of(earlier, design(unit="seconds", amount=1.0), MACHINE)
    with pytest.raises(UsageError, match="avx512f"):
        runs_of(earlier, design(), replace(MACHINE, features=("avx512f",)))
    path = earlier.path / "environment.json"
    content = json.loads(path.read_text())
    content["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"torch 1\.0"):
        runs_of(earlier, design(), MACHINE)
