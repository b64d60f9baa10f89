"""Several workers on one run, in one process and in several."""

import json
import math
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from shoestring.budget.ledger import read_ledger
from shoestring.contract.batch import Batch, Inputs
from shoestring.sync.transport.base import PeerLost
from shoestring.sync.transport.frame import HEADER_BYTES
from shoestring.train.team import Team
from shoestring.train.vote import Vote, VoteCount
from shoestring.train.worker_batches import WorkerBatches
from tests.train.command import TINY, finished, newest_weights, shoestring, shoestring_here, start, start_fresh

MULOCO = "--sync=muloco --sync.every=4 --sync.codec=2bit --train.batch=8".split()
STREAMING = [*MULOCO, "--sync.fragments=2", "--sync.overlap=1"]


class Numbers:
    """Sequence i is the number i."""

    def batch(self, start: int, count: int) -> Batch:
        rows = torch.arange(start, start + count)[:, None]
        return Batch(Inputs(rows), rows)


def test_the_parts_of_the_workers_are_the_batch() -> None:
    whole = Numbers().batch(24, 12)
    parts = [WorkerBatches(Numbers(), worker, 4).batch(24, 12).inputs.values for worker in range(4)]
    assert torch.equal(torch.cat(parts), whole.inputs.values)


def test_workers_end_at_the_fewest_steps_left() -> None:
    vote_count = VoteCount(gap=10)
    notes = [Vote(left=12).note(), Vote(left=25).note()]
    vote_count.count(30, notes)
    assert vote_count.decide(30) == Vote(math.inf)
    vote_count.count(40, [Vote(left=4).note(), None, Vote(left=3).note()])
    assert [vote_count.decide(step).left for step in (40, 42, 43)] == [3, 1, 0]


def test_any_worker_stops_all_and_only_the_leader_saves() -> None:
    vote_count = VoteCount(gap=10)
    vote_count.count(10, [Vote(save=False).note(), Vote(save=True).note()])
    assert not vote_count.decide(10).save
    vote_count.count(20, [Vote(save=True).note(), Vote(stop=True).note()])
    assert vote_count.decide(20) == Vote(math.inf, stop=True, save=True)
    assert not vote_count.decide(21).save


def run(corpus: Path, out: Path, *flags: str, budget: str = "4ktok") -> None:
    status, _, errors = shoestring_here(
        "train", f"--budget={budget}", f"--data.corpus={corpus}", "--out", out, *TINY, *flags
    )
    assert status == 0, errors


def test_exchanging_every_step_with_plain_averaging_is_synchronous_training(corpus: Path, tmp_path: Path) -> None:
    sgd = (
        "--optim=sgd --fallback=sgd --optim.lr=0.1 --fallback.lr=0.1 --train.batch=8 --train.gradient_clip=1e9".split()
    )
    averaging = "--workers=4 --transport=local --sync=diloco --sync.every=1 --sync.lr=1.0 --sync.momentum=0.0".split()
    losses = []
    for name, flags in {"alone": sgd, "four": [*sgd, *averaging]}.items():
        run(corpus, tmp_path / name, *flags)
        losses.append(json.loads((tmp_path / name / "summary.json").read_text())["heldout_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_one_worker_may_smooth_its_own_path(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "run", "--sync=muloco", "--sync.every=4")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["exchanges"]["rounds"] == math.ceil(summary["steps"] / 4)
    assert summary["exchanges"]["sent"] == 0


def test_another_number_of_workers_begins_from_the_weights_of_a_run(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "two", *MULOCO, "--workers=2", "--transport=local")
    words = [f"--data.corpus={corpus}", *TINY, *MULOCO, "--budget=1ktok", "--transport=local"]
    four = ["train", *words, "--workers=4", "--model.base", tmp_path / "two", "--out", tmp_path / "four"]
    status, _, errors = shoestring_here(*four, "--train.base_optimizer=true")
    assert status == 2
    assert "state of each of its workers, and none of all: begin with a new optimiser" in errors
    shutil.rmtree(tmp_path / "four")
    status, _, errors = shoestring_here(*four, "--train.base_optimizer=false")
    assert status == 0, errors
    assert json.loads((tmp_path / "four" / "summary.json").read_text())["workers"] == 4


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("flags", [MULOCO, STREAMING], ids=["whole", "streaming"])
def test_what_was_exchanged_is_on_the_books(
    corpus: Path, tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoestring.train.loop.LOG_SECONDS", 0.0)  # a line of metrics after every step
    run(corpus, tmp_path / "run", *flags, "--workers=4", "--transport=local")
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["exchanges"]
    roles = found["sent_by_role"]
    assert roles.keys() == {"control", "embedding", "matrix", "vector"}
    assert min(roles.values()) > 0
    # to each other of four, one by which they find that they begin alike, and three a round
    messages = 4 * 3 * (1 + 3 * found["rounds"])
    assert sum(roles.values()) == found["sent"] - messages * HEADER_BYTES
    ledger = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert sum(line.get("sent", 0) for line in ledger) == found["sent"] == found["received"]

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["kind"] == "train")
    assert (first["workers"], first["processes"]) == (4, 1)
    assert (first["sent"], first["received"], first["sync_exposed"], first["sync_hidden"]) == (0, 0, 0, 0)
    *_, last = (line for line in lines if line["kind"] == "train")
    assert 0 < last["sent"] == last["received"] <= found["sent"]
    assert 0 < last["sync_exposed"] <= found["exposed"] + 1e-4


@pytest.mark.parametrize("flags", [MULOCO, STREAMING], ids=["whole", "streaming"])
def test_a_run_of_four_resumes_bit_for_bit(corpus: Path, tmp_path: Path, flags: list[str]) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    local = ["--workers=4", "--transport=local", "--train.checkpoint_every=0.0001", "--train.keep=100"]
    run(corpus, whole, *flags, *local)
    shutil.copytree(whole, resumed)
    steps = sorted((resumed / "checkpoints").iterdir())
    middle = steps[len(steps) // 2].name.removeprefix("step-")
    status, _, errors = shoestring_here("train", "--resume", resumed, "--from-step", int(middle))
    assert status == 0, errors
    assert newest_weights(resumed) == newest_weights(whole)


def test_a_run_by_processes_is_the_run_in_one_process_and_resumes_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    flags = [*TINY, *STREAMING, "--workers=2", "--train.keep=100", "--train.checkpoint_every=0.0001"]
    where = ["--budget=4ktok", f"--data.corpus={corpus}"]
    status, shown, errors = shoestring("train", *where, "--out", tmp_path / "processes", *flags)
    assert status == 0, errors
    assert "by 2 workers; each sent" in shown
    assert json.loads((tmp_path / "processes" / "summary.json").read_text())["tokens"] == 4096
    run(corpus, tmp_path / "one", *flags, "--transport=local")
    assert newest_weights(tmp_path / "processes") == newest_weights(tmp_path / "one")

    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "processes", resumed)
    steps = sorted((resumed / "checkpoints").iterdir())
    for later in steps[len(steps) // 2 :]:
        shutil.rmtree(later)  # as if the leader had been killed before it wrote them
    (resumed / "summary.json").unlink()
    # once as a user starts it: workers that import everything themselves
    status, _, errors = finished(start_fresh("train", "--resume", resumed))
    assert status == 0, errors
    assert newest_weights(resumed) == newest_weights(tmp_path / "processes")


def test_asked_to_stop_all_workers_stop_and_go_on(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [*TINY, *MULOCO, "--workers=2", "--budget=100Mtok", f"--data.corpus={corpus}"]
    process = start("train", "--out", out, *flags)
    end = time.monotonic() + 60
    metrics = [folder / "metrics.jsonl" for folder in (out, out / "workers" / "1")]
    # both must have begun: a worker that is asked while it starts stops at once
    while not all(path.exists() and path.stat().st_size for path in metrics):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "go on with" in shown
    kept = [sorted((folder / "checkpoints").iterdir())[-1].name for folder in (out, out / "workers" / "1")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("asked", [True, False])
def test_others_that_stop_at_once_when_all_are_asked_are_no_failure(
    asked: bool, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*words: object) -> None:
        if asked:
            signal.raise_signal(signal.SIGINT)
        raise PeerLost(1, "it closed the connection")

    monkeypatch.setattr(Team, "apply", lose)
    flags = [*TINY, *MULOCO, "--workers=2", "--transport=local", "--budget=4ktok", f"--data.corpus={corpus}"]
    status, shown, errors = shoestring_here("train", "--out", tmp_path / "run", *flags)
    if asked:
        assert status == 130, errors
        assert "this worker keeps its last checkpoint" in shown
        assert "go on with" in shown
    else:
        assert status == 1
        assert "worker 1 is lost" in errors


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--workers=3"], "workers = 3 need a way to exchange"),
        (["--workers=3", "--sync=muloco", "--train.batch=8"], "does not divide into equal parts for 3 workers"),
        (["--workers=2", "--sync=muloco", "--optim=schedule_free"], "optim = schedule_free keeps weights of its own"),
        (["--sync=muloco", "--fallback=schedule_free"], "fallback = schedule_free keeps weights of its own"),
        (["--sync=muloco", "--sync.overlap=40"], "overlap = 40 must be below every = 30"),
        (["--sync=diloco", "--sync.held=weights"], "feedback = 0 is none"),
        (["--workers=2", "--sync=muloco", "--sync.codec=5bit"], "bits = 5: input should be 8, 4, 3, 2 or 1"),
        (
            ["--sync=muloco", "--sync.average=gather", "--sync.average_codec=3bit"],
            "nothing that average_codec would pack",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    corpus: Path, tmp_path: Path, flags: list[str], line: str
) -> None:
    status, _, errors = shoestring_here("train", f"--data.corpus={corpus}", "--out", tmp_path / "run", *TINY, *flags)
    assert status == 2
    assert line in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
