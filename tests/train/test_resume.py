"""Runs that are killed, asked to stop, and resumed: real processes."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from shoestring.budget.ledger import Totals, read_ledger
from tests.train.command import TINY, newest_weights, shoestring, start

STEPS, PER_STEP = 1500, 4 * 32


def _wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def budget() -> str:
    return f"{STEPS * PER_STEP}tok"


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, budget: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    status, _, errors = shoestring("train", f"--budget={budget}", f"--data.corpus={corpus}", "--out", run, *TINY)
    assert status == 0, errors
    return run


def test_ten_sigkills_and_the_same_weights_bit_for_bit(
    corpus: Path, budget: str, uninterrupted: Path, tmp_path: Path
) -> None:
    run, chance = tmp_path / "run", random.Random(7)
    every = "--train.checkpoint_every=0.2"
    process = start("train", f"--budget={budget}", f"--data.corpus={corpus}", "--out", run, every, *TINY)
    kills = 0
    while kills < 10:
        _wait_for(run / "config.toml")
        time.sleep(chance.uniform(0.0, 0.8))
        if process.poll() is not None:
            break  # it got through before the kill: the rest of the kills have nothing to hit
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        seen = len(read_ledger(run / "ledger.jsonl"))
        process = start("train", "--resume", run)
        end = time.monotonic() + 60
        while process.poll() is None and len(read_ledger(run / "ledger.jsonl")) <= seen and time.monotonic() < end:
            time.sleep(0.02)  # killed again only once it has really resumed
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert kills == 10
    assert newest_weights(run) == newest_weights(uninterrupted)
    totals = Totals()
    for line in read_ledger(run / "ledger.jsonl"):
        totals = totals.plus(line)
    assert totals.tokens == STEPS * PER_STEP
    assert totals.discarded > 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert (
        json.loads((run / "summary.json").read_text())["heldout_loss"]
        == (json.loads((uninterrupted / "summary.json").read_text())["heldout_loss"])
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_checkpoints_and_leaves_and_goes_on(
    corpus: Path, budget: str, uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = start("train", f"--budget={budget}", f"--data.corpus={corpus}", "--out", run, *TINY)
    _wait_for(run / "metrics.jsonl")
    time.sleep(0.3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "go on with" in output
    assert "Traceback" not in errors
    status, _, errors = shoestring("train", "--resume", run)
    assert status == 0, errors
    assert newest_weights(run) == newest_weights(uninterrupted)
    status, _, errors = shoestring("train", "--resume", run)
    assert status == 2
    assert "has finished" in errors
