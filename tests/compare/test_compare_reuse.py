"""Runs that are taken from an earlier comparison: those that would be made again exactly, and no others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shoestring.budget.machine import Machine
from shoestring.compare.design import Design
from shoestring.compare.folder import ComparisonFolder
from shoestring.compare.record import RunLog, RunRecord
from shoestring.compare.reuse import reusable
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
    plain: dict[str, object] = {
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


@pytest.fixture
def earlier(tmp_path: Path) -> ComparisonFolder:
    folder = ComparisonFolder.create(tmp_path / "earlier")
    folder.write(design(), ARMS, MACHINE)
    log = RunLog(folder.records)
    for arm in ARMS:
        for rate in (0.1, 0.2):
            log.append(record(arm, 9, "tune", rate))
        for seed in (0, 1):
            log.append(record(arm, seed, "judge", 0.1))
    return folder


def test_the_same_comparison_takes_every_run(earlier: ComparisonFolder) -> None:
    assert reusable(earlier, design(), ARMS, MACHINE) == RunLog(earlier.records).read()


def test_an_arm_that_changed_in_anything_is_made_anew(earlier: ComparisonFolder) -> None:
    changed = {**ARMS, "other": replace(ARMS["other"], seed=1)}
    assert {run.arm for run in reusable(earlier, design(), changed, MACHINE)} == {"base"}
    tuned = design(tuning={**TRIALS, "base": [{"optim.lr": 0.1}, {"optim.lr": 0.4}]})
    assert {run.arm for run in reusable(earlier, tuned, ARMS, MACHINE)} == {"other"}


def test_seeds_that_are_not_judged_and_failed_runs_stay_behind(earlier: ComparisonFolder) -> None:
    RunLog(earlier.records).append(record("base", 2, "judge", 0.1, stopped="failed", loss=None, reason="lost"))
    taken = reusable(earlier, design(seeds=[1, 2]), ARMS, MACHINE)
    assert {run.seed for run in taken if run.purpose == "judge"} == {1}


def test_what_cannot_be_the_same_is_refused(earlier: ComparisonFolder) -> None:
    with pytest.raises(UsageError, match="side by side"):
        reusable(earlier, design(unit="seconds", amount=1.0), ARMS, MACHINE)
    with pytest.raises(UsageError, match="avx512f"):
        reusable(earlier, design(), ARMS, replace(MACHINE, features=("avx512f",)))
    path = earlier.path / "environment.json"
    content = json.loads(path.read_text())
    content["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"torch 1\.0"):
        reusable(earlier, design(), ARMS, MACHINE)
