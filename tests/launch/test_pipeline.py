"""`shoestring train --transport pipeline`: a model cut into stages, through the real command."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from shoestring.budget.ledger import Ledger
from shoestring.config import build, overrides, read_toml
from shoestring.errors import UsageError
from shoestring.launch.request import TrainingRequest
from shoestring.train.config import RunConfig
from shoestring.train.participation import FixedWorkers
from tests.train.command import TINY, newest_weights, shoestring_here, start

SHAPE = "--model.layers=4 --model.tied=false --optim=adamw --train.gradient_clip=1e6 --train.micro_batch=1 --execution.threads=1"
EXACT = [*TINY, *SHAPE.split(), "--execution.attention=flash", "--execution.device=cpu"]
STAGES = ["--transport=pipeline", "--pipeline.stages=2"]

pytestmark = pytest.mark.processes


def train(*words: object) -> str:
    status, output, errors = shoestring_here("train", *words)
    assert status == 0, errors
    return output


def summary(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "summary.json").read_text())
    return found


@pytest.mark.usefixtures("pages")
def test_a_pipeline_trains_and_goes_on_bit_for_bit_as_one_process_does(corpus: Path, tmp_path: Path) -> None:
    words = [
        f"--data.corpus={corpus}",
        "--budget=640tok",
        *EXACT,
        "--train.keep=100",
        "--train.checkpoint_every=0.0001",
    ]
    train("--out", tmp_path / "one", *words)
    train("--out", tmp_path / "stages", *words, *STAGES)
    final = newest_weights(tmp_path / "one")
    assert newest_weights(tmp_path / "stages") == final
    found = summary(tmp_path / "stages")
    assert {key: found[key] for key in ("tokens", "flops", "heldout_loss")} == {
        key: summary(tmp_path / "one")[key] for key in ("tokens", "flops", "heldout_loss")
    }
    assert found["pipeline"]["failures"] == 0  # type: ignore[index]
    assert found["pipeline"]["goodput"] == 1  # type: ignore[index]
    assert not (tmp_path / "stages" / "stages").exists()
    assert (tmp_path / "stages" / "transformers").is_dir()

    shutil.copytree(tmp_path / "stages", tmp_path / "resumed")
    steps = sorted((tmp_path / "resumed" / "checkpoints").iterdir())
    middle = int(steps[len(steps) // 2].name.removeprefix("step-"))
    train("--resume", tmp_path / "resumed", "--from-step", middle)
    assert newest_weights(tmp_path / "resumed") == final


@pytest.mark.parametrize("recovery", ["checkpoint", pytest.param("redundant", marks=pytest.mark.slow)])
def test_a_run_outlives_a_stage_that_is_killed(corpus: Path, tmp_path: Path, recovery: str) -> None:
    run = tmp_path / "run"
    words = [f"--data.corpus={corpus}", "--budget=8ktok", *EXACT, *STAGES, f"--pipeline.recovery={recovery}"]
    more = ["--pipeline.recovery.every=10"] if recovery == "checkpoint" else []
    process = start("train", "--out", run, *words, *more)
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"2 stages in processes (\d+), (\d+)", line)
        if found:
            break
    metrics = run / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or not metrics.read_text()):
        time.sleep(0.02)
    assert found is not None
    os.kill(int(found[2]), signal.SIGKILL)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    result = summary(run)
    assert result["pipeline"]["failures"] == 1  # type: ignore[index]
    assert result["stopped"] == "finished"
    assert result["tokens"] >= 8_000  # type: ignore[operator]
    assert result["tokens_discarded"] == result["pipeline"]["tokens_discarded"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--workers=2", "it is one worker"),
        ("--sync=diloco", "give --sync none"),
        ("--edits=ternary", "give no edits"),
        ("--batch-size=ramp", "the same batch"),
        ("--data.packing=isolated", "data.packing stream"),
        ("--optim=sophia", "second derivatives"),
        ("--optim=schedule_free", "second derivatives or keeps weights"),
        ("--model.tied=true", "set model.tied = false"),
        ("--pipeline.stages=3", "model.layers = 4 do not divide"),
        ("--pipeline.stages=1", "at least"),
        ("--execution.precision=bfloat16", "execution.precision must be float32"),
    ],
)
def test_what_a_pipeline_has_not_got_is_refused_in_one_line(tmp_path: Path, flag: str, line: str) -> None:
    recovery = ["--pipeline.recovery=redundant"] if flag == "--pipeline.stages=1" else []
    words = ["--train.batch=8", "--model.layers=4", *STAGES, flag, *recovery]
    status, _, errors = shoestring_here("train", "--out", tmp_path / "run", *words)
    assert (status, errors.count("\n")) == (2, 1), errors
    assert line in errors
    assert not (tmp_path / "run").exists()


def test_a_request_for_a_pipeline_leaves_nothing_to_be_measured(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('transport = "pipeline"\n[pipeline]\nstages = 2\nrecovery = "checkfree"\n')
    with pytest.raises(UsageError, match="checkfree needs at least 3 stages, not 2"):
        TrainingRequest.read(tmp_path / "recipe.toml", [])
    request = TrainingRequest.read(tmp_path / "recipe.toml", ["--pipeline.stages=6"])
    config = build(RunConfig, read_toml(tmp_path / "recipe.toml") | request.asked | {"pipeline": {"stages": 6}})
    assert (config.execution.precision, config.model.tied) == ("float32", False)


def test_nothing_else_trains_a_pipelines_configuration(tmp_path: Path) -> None:
    words = [f"--{key}={value}" for key, value in {"budget": "1ktok", "train.batch": 4, "model.layers": 2}.items()]
    request = TrainingRequest.of(overrides([*words, *STAGES]))
    config = build(RunConfig, request.asked)
    with pytest.raises(UsageError, match="transport = pipeline takes processes that"):
        FixedWorkers().join(config, None, Ledger())  # type: ignore[arg-type]
