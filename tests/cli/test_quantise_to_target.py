"""`shoestring quantise PLACE --to 4bit` and the like: what is written opens everywhere, and what is told is so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.base import open_model
from shoestring.base.gguf_file import read_header
from shoestring.cli.main import main
from shoestring.contract.batch import Inputs
from tests.train.command import TINY


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--budget=6ktok", f"--data.corpus={corpus}", *TINY, "--data.heldout=0.3", "--train.sample_tokens=0"]
    assert main(["train", *words, "--out", str(out)]) == 0
    return out


QUICK = ["--tokens", "128", "--measured", "256"]


def quantised(run: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["quantise", str(run), "--out", str(out), "--json", *QUICK, *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_in_few_bits_writes_and_is_evaluated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "three"
    found = quantised(run, out, capsys, "--to", "3bit", "--format.group", "32")
    assert (found["code_bits"], found["stored_bits"], found["matrices"]) == (3, 4, 4)
    assert found["bytes"] == (out / "quantised.safetensors").stat().st_size < found["bytes_before"] / 3
    assert abs(found["loss_after"]["value"] - found["loss_before"]["value"]) < 0.5
    assert found["rounded"] == []
    assert found["accounts"]["calibration"]["flops"] > 0
    ledger = [json.loads(line)["event"] for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert ledger == ["before", "quantise"]
    assert not list(tmp_path.glob(".three*"))
    assert main(["generate", str(out), "line 1", "--tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("line 1")
    assert main(["evaluate", str(run), str(out), "--tokens", "200", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["places"]
    assert rows[1]["kind"] == "quantised"
    assert rows[1]["nats_per_token"]["value"] == pytest.approx(rows[0]["nats_per_token"]["value"], abs=0.5)
    assert main(["export", str(out), "--to", "transformers", "--out", str(tmp_path / "theirs")]) == 0
    theirs, ours = (open_model(str(one), torch.float32).model for one in (tmp_path / "theirs", out))
    ids = Inputs(torch.arange(20)[None])
    torch.testing.assert_close(theirs.read(ids).hidden, ours.read(ids).hidden, atol=1e-5, rtol=1e-5)
    whole = ["--to", "8bit", "--format.group", "0", "--activations", "token", "--solver", "rtn"]
    capsys.readouterr()
    eight = quantised(run, tmp_path / "eight", capsys, *whole)
    assert any(
        "4 matrices and their inputs, in 8 bits a token, are multiplied as integers" in one for one in eight["notes"]
    )
    assert abs(eight["loss_after"]["value"] - eight["loss_before"]["value"]) < 0.05
    again = ["--to", "2bit", "--unmeasured", "--solver", "rtn", "--out", str(tmp_path / "again")]
    assert main(["quantise", str(out), *again]) == 0  # of its plain numbers


def test_bytes_and_average_bits_are_kept_to(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = quantised(run, tmp_path / "a", capsys, "--to", "22kB", "--bits", "selective_rtn", "--unmeasured")
    assert small["bytes"] <= 22_000
    assert small["loss_before"] is None
    mixed = quantised(run, tmp_path / "b", capsys, "--to", "3.5bit")
    assert 3 <= mixed["code_bits"] <= 3.5
    assert mixed["recipe"]["bits"]["name"] == "integer_program"
    assert main(["quantise", str(run), "--to", "9kB", "--out", str(tmp_path / "c"), *QUICK]) == 2
    assert "the least that this format can do" in capsys.readouterr().err


def test_a_time_for_a_token_is_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoestring.shrink import milliseconds

    # a machine on which a product with 8 bits takes twice as long, whatever this one does
    monkeypatch.setattr(
        milliseconds.Products, "seconds", lambda self, rows, columns, bits: rows * columns * (1 + (bits > 4)) * 1e-9
    )
    monkeypatch.setattr(milliseconds, "seconds_per_token", lambda model, clock: 20e-6)
    found = quantised(run, tmp_path / "a", capsys, "--to", "0.024ms/token", "--unmeasured")
    assert found["seconds_per_token"] > 0
    bits = {one["format"]["code_bits"] for one in description(tmp_path / "a").values() if one["columns"] in (32, 88)}
    assert 8 in bits
    assert bits & {2, 3, 4}
    assert (
        main(["quantise", str(run), "--to", "0.001ms/token", "--unmeasured", "--out", str(tmp_path / "b"), *QUICK]) == 2
    )
    assert "seconds a token cannot be reached" in capsys.readouterr().err


def description(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(folder / "quantised.safetensors", "pt") as file:
        found: dict[str, Any] = json.loads((file.metadata() or {})["shoestring"])["matrices"]
    return {name: one for name, one in found.items() if name != "embedding"}


def test_a_budget_that_is_too_small_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = quantised(run, tmp_path / "a", capsys, "--to", "4bit", "--budget", "0.000001s", "--unmeasured")
    assert len(found["rounded"]) == 4
    assert "the budget ended: 4 of 4 matrices" in found["notes"][0]
    assert any("the budget ended" in note for note in open_model(str(tmp_path / "a")).about.notes)


def test_a_file_for_llama_cpp(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    found = quantised(run, tmp_path / "a.gguf", capsys, "--to", "q4_0")
    assert found["bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert abs(found["loss_after"]["value"] - found["loss_before"]["value"]) < 0.5
    types = {one.type for one in read_header(tmp_path / "a.gguf").tensors.values() if len(one.shape) > 1}
    assert types == {"Q4_0", "F16"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "4bananas"], "is no target: say 4bit"),
        (["--to", "ternary3"], "did you mean 'ternary2'"),
        (["--to", "4bit", "--solver", "gptk"], "did you mean 'gptq'"),
        (["--to", "4bit", "--solver.dampin", "0.1"], "dampin"),
        (["--to", "4bit", "--model.width", "8"], "--model is unknown"),
        (["--to", "4bit", "--data.tokenizer", "bytes"], "has no meaning here"),
        (["--to", "4bit", "--budget", "3ktok"], "a budget of time"),
        (["--to", "4bit", "--keep", "nothing"], "names no matrix"),
        (["--to", "Q4_0", "--format", "microscaling"], "leave --format out"),
        (["--to", "Q4_0", "--embedding", "4"], "16 or 8 bits here"),
        (["--to", "Q4_0", "--activations", "token"], "leave --activations out"),
        (["--to", "7bit"], "bits, not 7"),
        (["--to", "3bit", "--format", "k_blocks"], "one width of codes"),
        (["--to", "ternary2", "--solver", "gptq"], "--solver is for other targets"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["quantise", str(run), "--out", str(tmp_path / "a"), "--unmeasured", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len([line for line in err.splitlines() if line.startswith("shoestring:")]) == 1
    assert not (tmp_path / "a").exists()
