"""`shoestring train` with islands, as torchrun starts it: a rank is killed, the others end, and the run goes on; bytes by link."""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.budget.ledger import read_ledger
from shoestring.cli.main import main
from shoestring.config import build, overrides
from shoestring.errors import UsageError
from shoestring.launch.request import TrainingRequest
from shoestring.train.checkpoint import load
from shoestring.train.config import RunConfig
from tests.train.command import LIMIT, TINY, shoestring_here

SAME = (
    "--budget=4096tok --optim=muon --optim.precision=float32 --execution.device=cpu --workers=2 --train.batch=8 "
    "--train.micro_batch=2 --sync=diloco --sync.every=4 --sync.fragments=2 --sync.overlap=1"
).split()
PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")


def as_process(words: list[str], place: dict[str, str], said: Path) -> None:
    os.environ.update(place)
    torch.set_num_threads(1)
    with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        status = main(words)
        file.flush()
    os._exit(status)  # what a user's process ends with, and none of the test's own farewells


class Started:
    """Processes of a run, each with its place in the environment."""

    def __init__(self, words: Sequence[object], count: int, folder: Path) -> None:
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        self.said = [folder / f"{rank}.txt" for rank in range(count)]
        context = multiprocessing.get_context("fork")  # torch is imported here already
        self.processes = []
        for rank, said in enumerate(self.said):
            place = {name: str(value) for name, value in {"RANK": rank, **shared}.items()}
            self.processes.append(context.Process(target=as_process, args=([str(w) for w in words], place, said)))
        for process in self.processes:
            process.start()

    def ended(self) -> tuple[list[int | None], list[str]]:
        """(exit status, output) of each."""
        end = time.monotonic() + LIMIT
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0.1))
        return [process.exitcode for process in self.processes], [said.read_text() for said in self.said]


def read(run: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((run / "summary.json").read_text()), dict(load(run / "checkpoints")[1].model)


def test_a_rank_of_an_island_is_killed_and_the_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    words = ["train", *TINY, *SAME, f"--data.corpus={corpus}"]
    status, _, errors = shoestring_here(*words, "--transport=local", "--out", tmp_path / "alone")
    assert status == 0, errors
    run = tmp_path / "run"
    flags = ["--parallel.fsdp=2", "--train.checkpoint_every=0.001", "--train.keep=100"]
    started = Started([*words, *flags, "--out", run], 4, tmp_path / "first")
    end = time.monotonic() + LIMIT
    while len(list((run / "workers" / "1" / "checkpoints").glob("step-*"))) < 2:
        assert all(process.is_alive() for process in started.processes), started.ended()
        assert time.monotonic() < end
        time.sleep(0.01)
    killed = started.processes[3]
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    statuses, said = started.ended()
    assert statuses == [1, 1, 1, -signal.SIGKILL], said
    for text in said[:3]:
        assert "Traceback" not in text
        assert re.search(r"^shoestring: (a )?worker.* is lost: .*$", text.splitlines()[-1]), text
    shutil.copytree(run, tmp_path / "undivided")

    statuses, said = Started(["train", "--resume", run], 4, tmp_path / "second").ended()
    assert statuses == [0] * 4, said
    assert "resumed from the checkpoint of step" in said[0]
    assert "within its worker" in said[0]
    (one, weights), (two, others) = read(tmp_path / "alone"), read(run)
    assert two["heldout_loss"] == pytest.approx(one["heldout_loss"], abs=1e-5)
    assert (two["steps"], two["tokens"], two["flops"]) == (one["steps"], one["tokens"], one["flops"])
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-4)
    assert (two["workers"], two["processes"], two["parallel"]["fsdp"]) == (2, 4, 2)
    ledger = read_ledger(run / "ledger.jsonl")
    between = sum(line.get("sent", 0) for line in ledger)
    within = sum(line.get("accounts", {}).get("island", {}).get("received", 0) for line in ledger)
    assert between >= two["exchanges"]["sent"] > 0
    assert within > between  # gradients and weights at every step, and the exchanges seldom

    flags = ["--parallel.fsdp=1"]  # what an island kept is what a worker of one process would have
    statuses, said = Started(["train", "--resume", tmp_path / "undivided", *flags], 2, tmp_path / "third").ended()
    assert statuses == [0] * 2, said
    assert read(tmp_path / "undivided")[0]["heldout_loss"] == pytest.approx(one["heldout_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--workers=2", "need a way to exchange what they learn"),
        ("--workers=2 --sync=muloco --transport=torchft", "give --transport distributed"),
        ("--workers=2 --sync=muloco --transport=local", "give --transport distributed"),
        ("--sync=muloco", "exchanges with nobody"),
        ("--workers=2 --sync=muloco --train.batch=6", "train.batch = 6 does not divide into 4 equal parts"),
    ],
)
def test_what_islands_have_not_got_is_refused(flags: str, line: str) -> None:
    words = ["--budget=4ktok", "--model.vocabulary=64", "--train.batch=8", "--parallel.fsdp=2", *flags.split()]
    with pytest.raises(UsageError, match=line):
        build(RunConfig, {"model": {}, **overrides(words)})


def test_a_plan_counts_what_islands_exchange_by_islands() -> None:
    words = "--workers=2 --sync=diloco --sync.every=10 --budget=1Mtok".split()
    alone = TrainingRequest.of(overrides(words)).exchanged
    divided = TrainingRequest.of(overrides([*words, "--parallel.fsdp=2", "--parallel.data=2"])).exchanged
    assert alone is not None
    assert divided == alone
