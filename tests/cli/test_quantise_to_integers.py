"""`shoestring quantise PLACE --to integers`: what is written is evaluated and writes, and what is told is so."""

import json
from pathlib import Path

import pytest
import torch

from shoestring.base import open_model
from shoestring.cli.main import main
from shoestring.contract.batch import Inputs
from shoestring.quantise.integer_only.footprint import integer_footprint
from tests.train.command import TINY

EMBBERT = ["--model.embedding=nano", "--model.token_mixer=efficient_attention"]


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of plain attention, one of EmbBERT's parts, and one of parts that have no integer-only form."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["--budget=6ktok", f"--data.corpus={corpus}", *TINY, "--data.heldout=0.3", "--train.sample_tokens=0"]
    kinds = {"plain": [], "embbert": EMBBERT, "other": ["--model.channel_mixer=moe"]}
    for name, more in kinds.items():
        budget = ["--budget=1ktok"] if name == "other" else []
        assert main(["train", *words, *more, *budget, "--out", str(folder / name)]) == 0
    return {name: folder / name for name in kinds}


QUICK = ["--to", "integers", "--tokens", "128", "--measured", "256"]


@pytest.mark.parametrize("name", ["plain", "embbert"])
def test_a_run_in_integers_writes_and_is_evaluated(
    name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = runs[name], tmp_path / "integers"
    assert main(["quantise", str(run), "--out", str(out), "--json", *QUICK]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["bytes"] == (out / "integers.safetensors").stat().st_size < found["bytes_before"]
    used = found["footprint"]
    model = open_model(str(out)).model
    assert integer_footprint(model) == (used["weights"], used["cache"], used["activations"], 8)  # type: ignore[arg-type]
    assert used["total"] == used["weights"] + used["cache"] + used["activations"]
    assert f"cache        {used['cache']:,} bytes" in shown.err
    before, after = found["loss_before"]["value"], found["loss_after"]["value"]
    assert after == pytest.approx(before, rel=0.02)
    assert after != before
    ledger = [json.loads(line)["event"] for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert ledger == ["before", "quantise"]
    assert main(["generate", str(out), "line 1", "--tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("line 1")
    assert main(["evaluate", str(run), str(out), "--tokens", "200", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["places"]
    assert rows[1]["kind"] == "integer_only"
    assert rows[1]["nats_per_token"]["value"] == pytest.approx(rows[0]["nats_per_token"]["value"], rel=0.02)
    # the same again is the same bits
    assert main(["quantise", str(run), "--out", str(tmp_path / "again"), "--unmeasured", *QUICK]) == 0
    again = open_model(str(tmp_path / "again")).model
    ids = Inputs(torch.arange(20)[None])
    assert torch.equal(again.read(ids).logits(), model.read(ids).logits())
    assert "loss" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--solver", "gptq"], "--solver is for other targets"),
        (["--format.group", "64"], "--format is for other targets"),
        (["--embedding", "4"], "--embedding is for other targets"),
    ],
)
def test_flags_of_other_targets_are_refused(
    words: list[str], said: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantise", str(runs["plain"]), "--out", str(tmp_path / "a"), *QUICK, *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_other_models_and_what_is_integers_already_are_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantise", str(runs["other"]), "--out", str(tmp_path / "a"), *QUICK]) == 2
    assert "layer 0: the channel mixer 'moe' has no integer-only form: supported are" in capsys.readouterr().err
    assert main(["quantise", str(runs["plain"]), "--out", str(tmp_path / "b"), "--unmeasured", *QUICK]) == 0
    capsys.readouterr()
    assert main(["quantise", str(tmp_path / "b"), "--out", str(tmp_path / "c"), *QUICK]) == 2
    assert "computes with integers alone: it cannot be opened in float32" in capsys.readouterr().err
    assert main(["quantise", str(runs["plain"]), "--to", "integer", "--out", str(tmp_path / "d")]) == 2
    assert "did you mean 'integers'?" in capsys.readouterr().err
