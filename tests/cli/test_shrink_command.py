"""`shoestring shrink`: pruned to a target, healed, measured before and after."""

import json
from pathlib import Path

import pytest
import torch

from shoestring.base import open_model
from shoestring.contract.batch import Inputs
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring

QUICK = ("--train.batch=4", "--train.sample_tokens=0", "--model.context=32", "--execution.precision=float32")
PLAIN = ("--execution.compile=none", "--execution.attention=flash", "--execution.loss=plain")


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    words = ["--model.layers=2" if word == "--model.layers=1" else word for word in TINY]
    status, _, errors = shoestring("train", "--budget=8ktok", f"--data.corpus={corpus}", *words, "--out", run)
    assert status == 0, errors
    return run


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize(
    ("method", "axes", "share"),
    [("minitron", ["hidden", "width"], 0.7), ("slimgpt", ["hidden", "heads"], 0.7), ("drop_layers", ["layers"], 0.9)],
)
def test_it_prunes_heals_and_measures(
    base: Path, corpus: Path, tmp_path: Path, method: str, axes: list[str], share: float
) -> None:
    out = tmp_path / "small"
    status, output, errors = shoestring(
        "shrink", base, "--to", f"{share}x", "--method", method, "--budget=6ktok", f"--data.corpus={corpus}",
        *QUICK, *PLAIN, "--out", out, "--json",
    )  # fmt: skip
    assert status == 0, errors
    found = json.loads(output)
    assert (found["method"], found["axes"]) == (method, axes)
    stages = found["stages"]
    assert stages["healed"]["parameters"] <= share * stages["before"]["parameters"]
    assert stages["pruned"]["heldout_loss"] > stages["before"]["heldout_loss"]
    assert stages["healed"]["heldout_loss"] < stages["pruned"]["heldout_loss"]
    assert found["spent"]["accounts"]["teacher"]["flops"] > 0
    assert stages["healed"]["seconds"] > 0
    told = (
        "a final loss of" in errors,
        "are too few to predict its end" in errors,
    )  # lines are as seldom as the clock has them
    assert told == (found["healing"]["predicted"] is not None, found["healing"]["predicted"] is None)
    assert found["healing"]["seen"] >= 0.05
    assert found["from_scratch"]["tokens"] > 6000, "the teacher's operations count too"
    assert "times the parameters" in errors
    assert "from scratch for as many operations: about" in errors
    opened = open_model(str(out))
    assert sum(p.numel() for p in opened.model.parameters()) == stages["healed"]["parameters"]  # type: ignore[attr-defined]
    with torch.no_grad():
        assert opened.model.read(Inputs(torch.arange(8)[None])).logits().isfinite().all()
    assert (out / "report.html").exists()
    status, _, errors = shoestring("export", out, "--to=transformers", "--out", tmp_path / "stock")
    assert status == 0, errors


def test_a_mask_that_frees_nothing_is_called_that(base: Path, corpus: Path, tmp_path: Path) -> None:
    words = ("--to", "0.5x", "--method", "cast", "--budget=4ktok", f"--data.corpus={corpus}")
    status, output, errors = shoestring("shrink", base, *words, *QUICK, *PLAIN, "--out", tmp_path / "half", "--json")
    assert status == 0, errors
    found = json.loads(output)
    assert found["stages"]["healed"]["bytes"] == found["stages"]["before"]["bytes"]
    assert 0.2 < found["zeros"] < 0.5  # of all matrices; the embedding has no mask
    assert "weights are zero, and all are stored and multiplied: the result frees neither bytes nor time" in errors
    assert "as long a token" in errors


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--to", "ternary2"], "shoestring quantise {base} --to ternary2"),
        (["--to", "0.5"], "--to 0.5 is no target: say 0.7x, 0.7xms"),
        (["--to", "0.5x", "--method", "minitro"], "--method minitro is no way of pruning: "),
        (["--to", "0.5x", "--method", "lora"], "--method lora is no way of pruning: "),
        (["--to", "0.01x", "--method", "drop_layers"], "layers alone do not reach"),
        (["--to", "0.5x", "--axes", "depth"], "--axes depth: slimgpt cuts hidden, heads, not 'depth'"),
        (["--to", "0.001x"], "alone do not reach"),
        (["--to", "90MiB", "--method", "cast"], "masks weights, and frees no bytes: give a share, as 0.5x"),
        (["--to", "0.617x", "--method", "cast"], "cast keeps some of every few weights: a share such as 0.5x"),
        (["--to", "1TB"], "already: a target below that is needed"),
    ],
)
def test_what_cannot_be_is_one_line(base: Path, tmp_path: Path, words: list[str], line: str) -> None:
    status, output, errors = shoestring("shrink", base, *words, "--out", tmp_path / "none")
    assert (status, output) == (2, "")
    assert line.format(base=base) in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "none").exists()
