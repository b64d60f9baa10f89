"""`shoestring train` with [parallel]: a rank is killed, and the run goes on under another layout; what is refused, and why."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from shoestring.config import build, overrides
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig
from tests.train.command import LIMIT, TINY, finished, shoestring_here, start

SAME = "--budget=2560tok --optim=muon --optim.precision=float32 --train.micro_batch=2 --execution.device=cpu".split()


def read(run: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return json.loads((run / "summary.json").read_text()), load_file(newest / "model.safetensors")


def test_a_rank_is_killed_and_the_run_goes_on_under_another_layout(corpus: Path, tmp_path: Path) -> None:
    words = [*TINY, *SAME, f"--data.corpus={corpus}"]
    status, _, errors = shoestring_here("train", *words, "--out", tmp_path / "one")
    assert status == 0, errors
    run = tmp_path / "two"
    flags = ["--parallel.fsdp=2", "--train.checkpoint_every=0.001", "--train.keep=100"]
    process = start("train", *words, *flags, "--out", run)
    end = time.monotonic() + LIMIT
    while len(list((run / "checkpoints").glob("step-*"))) < 2:
        assert process.poll() is None, finished(process)
        assert time.monotonic() < end
        time.sleep(0.01)
    workers = [each for each in psutil.Process(process.pid).children() if each.is_running()]
    workers[-1].send_signal(signal.SIGKILL)
    status, _, errors = finished(process)
    assert status == 1
    assert "lost" in errors or "was ended by SIGKILL" in errors
    assert "Traceback" not in errors
    status, output, errors = shoestring_here("train", "--resume", run, "--parallel.fsdp=1")
    assert status == 0, errors
    assert "resumed from the checkpoint of step" in output
    (one, weights), (two, others) = read(tmp_path / "one"), read(run)
    assert two["heldout_loss"] == pytest.approx(one["heldout_loss"], abs=1e-5)
    assert (two["steps"], two["tokens"], two["flops"]) == (one["steps"], one["tokens"], one["flops"])
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--parallel.precision=bfloat16", "weights that fsdp gathers"),
        ("--parallel.fsdp=2 --parallel.precision=bfloat16 --execution.precision=float32", "for products in bfloat16"),
        ("--parallel.fsdp=2 --transport=local", "give --transport distributed"),
        ("--parallel.data=3 --train.batch=4", "train.batch = 4 does not divide into 3 equal parts"),
        ("--parallel.data=2 --train.batch=4 --train.micro_batch=4", "does not divide a process's part of the batch, 2"),
        ("--parallel.tensor=2 --execution.compile=blocks", "execution.compile = blocks has not been tried"),
        ("--parallel.checkpointing=layers --execution.compile=blocks", "give execution.compile = none"),
        ("--parallel.fsdp=0", "parallel.fsdp"),
    ],
)
def test_what_does_not_go_together_is_refused(flags: str, line: str) -> None:
    words = ["--budget=4ktok", "--model.vocabulary=64", *flags.split()]
    with pytest.raises(UsageError, match=line.replace("(", r"\(")):
        build(RunConfig, {"model": {}, **overrides(words)})
