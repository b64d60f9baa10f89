"""Runs that are killed, asked to stop, and resumed: real processes."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoestring.budget.ledger import Totals, read_ledger
from tests.train.command import TINY, finished, newest_weights, shoestring, shoestring_here, start, start_fresh

STEPS, PER_STEP = 250, 4 * 32
OFTEN = "--train.checkpoint_every=0.2"


@pytest.fixture(scope="module")
def words(corpus: Path) -> list[str]:
    # the closing evaluation, of all that is held out, is long enough to be met
    own = [word for word in TINY if not word.startswith("--train.heldout_tokens")]
    return ["train", f"--budget={STEPS * PER_STEP}tok", f"--data.corpus={corpus}", *own, "--train.heldout_tokens=5000"]


@pytest.fixture(scope="module")
def uninterrupted(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    # forked processes share a seed of `hash`: this one has another
    status, _, errors = finished(start_fresh(*words, "--out", run))
    assert status == 0, errors
    return run


def checkpoints(run: Path) -> list[int]:
    """The steps of the checkpoints that there are, in order."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*"))


def last(run: Path) -> dict[str, Any]:
    """The last line of the ledger."""
    lines = read_ledger(run / "ledger.jsonl") if (run / "ledger.jsonl").exists() else []
    return lines[-1] if lines else {"event": None}


def before_the_first_checkpoint(run: Path) -> bool:
    """What it has trained is on the books, and lost if it ends now."""
    return last(run)["event"] == "train" and not checkpoints(run)


def while_one_is_written(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.tmp"))


def right_after_one(run: Path) -> bool:
    line = last(run)
    return line["event"] == "checkpoint" and line["step"] in checkpoints(run)


def between_two(run: Path) -> bool:
    line, kept = last(run), checkpoints(run)
    return line["event"] == "train" and bool(kept) and kept[-1] < line["step"] < STEPS


def in_the_closing_evaluation(run: Path) -> bool:
    line = last(run)
    return line["event"] == "train" and line["step"] == STEPS and STEPS not in checkpoints(run)


MOMENTS = [
    before_the_first_checkpoint,
    while_one_is_written,
    right_after_one,
    between_two,
    in_the_closing_evaluation,
]


def killed(process: Any, run: Path, moment: Callable[[Path], bool]) -> bool:
    """Kill a process once its run's folder, looked at while the process is frozen, shows a moment. False where it ended first."""
    begun = (run / "ledger.jsonl").stat().st_size if (run / "ledger.jsonl").exists() else 0
    while process.poll() is None:
        # killed again only once it has written something itself
        if (run / "ledger.jsonl").exists() and (run / "ledger.jsonl").stat().st_size > begun and moment(run):
            process.send_signal(signal.SIGSTOP)
            if moment(run):
                process.send_signal(signal.SIGKILL)
                process.communicate()
                return True
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return False


def test_killed_at_every_kind_of_moment_it_ends_with_the_same_weights_bit_for_bit(
    words: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(*words, "--out", run, OFTEN, "--train.keep=100")
    for moment in MOMENTS:
        for _ in range(5):
            if killed(process, run, moment):
                break
            # on a busy machine a moment may pass unseen: the last steps once more
            kept = checkpoints(run)
            process = start("train", "--resume", run, "--from-step", kept[len(kept) // 2])
        else:
            pytest.fail(f"not killed {moment.__name__}")
        process = start("train", "--resume", run)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert newest_weights(run) == newest_weights(uninterrupted)
    totals = Totals()
    for line in read_ledger(run / "ledger.jsonl"):
        totals = totals.plus(line)
    assert totals.tokens == STEPS * PER_STEP
    assert totals.discarded >= PER_STEP  # of before the first checkpoint, at least
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    ends = [json.loads((each / "summary.json").read_text())["heldout_loss"] for each in (run, uninterrupted)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_checkpoints_and_leaves_and_goes_on(
    words: list[str], uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = start(*words, "--out", run)
    while last(run)["event"] != "train":
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "go on with" in output
    assert "Traceback" not in errors
    assert 0 < checkpoints(run)[-1] < STEPS
    status, _, errors = shoestring("train", "--resume", run)
    assert status == 0, errors
    assert newest_weights(run) == newest_weights(uninterrupted)
    status, _, errors = shoestring_here("train", "--resume", run)
    assert status == 2
    assert "has finished" in errors
