"""Runs by two processes, one of which is slow, is stopped, or is killed: who it is, in which phase, and how the run goes on."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.budget.stragglers import LOOKS
from shoestring.budget.timeline import WINDOW
from shoestring.cli.main import main
from shoestring.contract.batch import Batch
from shoestring.launch import diagnosis
from shoestring.launch.clock_offset import between
from shoestring.report.diagnosis import one_line
from shoestring.report.run_files import read_run
from shoestring.train.worker_batches import WorkerBatches
from tests.train.command import LIMIT, TINY, finished, newest_weights, shoestring, start

FSDP = [*TINY, *"--parallel.fsdp=2 --optim=adamw --train.micro_batch=2 --execution.device=cpu".split()]
USUAL, SLOW = 0.02 * LIMIT / 120, 0.05 * LIMIT / 120
"""Seconds that reading a batch takes in every process, so that a busy machine's noise is little beside it, and in a slow one."""
ENOUGH = WINDOW + WINDOW // 2 * (LOOKS + 1)
"""Steps after which a slow process has been named."""


def work(rank: int, port: int, words: Sequence[str], out: Path) -> None:
    """In a process as torchrun starts it, whose data phase takes a while; rank 1 is slow after `ENOUGH` steps."""
    place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, GLOO_SOCKET_IFNAME="lo")
    read, diagnosis.EVERY = WorkerBatches.batch, 0.1

    def late(self: WorkerBatches, start: int, count: int) -> Batch:
        time.sleep(SLOW if rank == 1 and start >= 4 * ENOUGH else USUAL)
        return read(self, start, count)

    WorkerBatches.batch = late  # type: ignore[method-assign]
    sys.stdout = sys.stderr = open(out.with_name(f"{out.name}-{rank}.txt"), "w")  # noqa: SIM115
    status = main(["train", "--out", str(out), "--heartbeat-timeout", "1000", *words])
    sys.stdout.flush()
    os._exit(status)


def trained(out: Path, corpus: Path) -> tuple[list[dict[str, Any]], str]:
    """(what was noticed, what rank 0 said) of a run of two processes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = [*FSDP, f"--budget={128 * 2 * ENOUGH}tok", f"--data.corpus={corpus}"]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, port, words, out)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    said = out.with_name(f"{out.name}-0.txt").read_text()
    assert [process.exitcode for process in processes] == [0, 0], said
    events = out / "events.jsonl"
    return [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else [], said


def test_a_slow_rank_is_named_with_its_phase_and_none_before_it_is_slow(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoestring.sync.transport.heartbeat._LONGEST_INTERVAL", 0.1)
    (event,), said = trained(tmp_path / "run", corpus)
    assert (event["event"], event["rank"], event["phase"]) == ("straggler", 1, "data")
    assert event["step"] > ENOUGH, "a false alarm: all were alike until then"
    assert event["share"] > 0.25
    assert said.count("holds the others up") == 1
    assert "most of it in 'data'" in " ".join(said.split())
    run = read_run(tmp_path / "run")
    assert "rank 1" in one_line(run)
    assert "held the others up in 'data'" in one_line(run)
    quick, late = run.processes.each
    assert late.medians["data"] > quick.medians["data"] + 0.5 * (SLOW - USUAL)
    assert quick.medians["communication"] > late.medians["communication"], "the slow one waits least"


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


def heldout(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "heldout"]


def test_a_run_goes_on_by_itself_when_a_rank_is_frozen_and_when_one_is_killed(corpus: Path, tmp_path: Path) -> None:
    words = [*FSDP, "--budget=2560tok", "--train.evaluate_every=0.2", f"--data.corpus={corpus}", "--train.keep=100"]
    status, _, errors = shoestring("train", *words, "--out", tmp_path / "undisturbed")
    assert status == 0, errors
    run = tmp_path / "run"
    flags = ["--max-restarts=2", "--heartbeat-timeout=2", "--train.checkpoint_every=0.0001"]
    process = start("train", *words, *flags, "--out", run)
    end, known = time.monotonic() + LIMIT, set[int]()
    for rank, how in ((1, signal.SIGSTOP), (0, signal.SIGKILL)):
        before = len(checkpoints(run))
        while len(checkpoints(run)) < before + 3:
            assert process.poll() is None, finished(process)
            assert time.monotonic() < end
            time.sleep(0.005)
        workers = sorted(each.pid for each in psutil.Process(process.pid).children() if each.pid not in known)
        known |= set(workers)
        os.kill(workers[rank], how)
    status, output, errors = finished(process)
    assert status == 0, errors
    said = " ".join(output.split())
    assert "worker 1 was frozen (" in said
    assert "restart 1 of 2: the run goes on from the checkpoint of step" in said
    assert "worker 0 was ended by SIGKILL (" in said
    assert "restart 2 of 2" in said
    assert "Traceback" not in said + errors
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [(each["rank"], each["frozen"]) for each in events] == [(1, True), (0, False)]
    assert all(each["host"] and each["phase"] for each in events), events
    assert heldout(run) == heldout(tmp_path / "undisturbed")
    assert newest_weights(run) == newest_weights(tmp_path / "undisturbed")
    spent = read_run(run)
    assert spent.resumed == 2
    assert 0 < spent.totals.seconds["restart"] < 60 * LIMIT / 120, "noticed within seconds, not minutes"
    assert "in restarts" in one_line(spent)


def test_what_was_asked_wrongly_is_not_tried_again(corpus: Path, tmp_path: Path) -> None:
    wrong = ["--max-restarts=3", f"--data.corpus={corpus}", "--out", tmp_path / "run"]
    status, output, errors = shoestring("train", *FSDP, *wrong, "--budget=4ktok", "--model.heads=3")
    assert status == 2
    assert "restart" not in output + errors
    status, _, errors = shoestring("train", *TINY, *wrong, "--budget=4ktok")
    assert (status, errors.count("\n")) == (2, 1)
    assert "--max-restarts goes with several processes" in errors


@given(
    st.floats(-1e4, 1e4),
    st.lists(st.tuples(*[st.floats(1e-5, 0.1)] * 4), min_size=1, max_size=6),
)
def test_the_offset_of_two_clocks_lies_within_its_bounds(offset: float, rounds: list[tuple[float, ...]]) -> None:
    """Each round: when either enters, and how long a message takes either way."""
    theirs, mine, now = [], [], 0.0
    for enter, other, there, back in rounds:
        sent = now + enter, now + other  # this one's, theirs
        arrived = max(sent[0], sent[1] + there), max(sent[1], sent[0] + back)
        theirs.append((sent[1], arrived[1]))
        mine.append((sent[0] + offset, arrived[0] + offset))
        now = max(arrived)
    found, error = between(*zip(*theirs, strict=True), *zip(*mine, strict=True))
    assert abs(found - offset) <= error + 1e-9
