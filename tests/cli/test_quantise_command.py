"""`shoestring quantise` and `generate`: a run trained with ternary weights, packed, measured and written with."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from shoestring.budget.ledger import Ledger
from shoestring.cli import quantise
from shoestring.cli.main import main
from shoestring.config import build, tree
from shoestring.contract.cost import Shape
from shoestring.model import Transformer
from shoestring.train.checkpoint import list_checkpoints
from shoestring.train.config import RunConfig
from shoestring.train.evaluate import Heldout
from shoestring.train.run_folder import RunFolder
from shoestring.train.trained import load_trained
from tests.train.command import TINY


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run trained with ternary weights, the same weights as a run in float32 would leave them, and a run of whole blocks
    of GGUF."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["--budget=8ktok", f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0", "--edits=ternary"]
    assert main(["train", *words, "--out", str(folder / "ternary")]) == 0
    run = RunFolder.open(Path(shutil.copytree(folder / "ternary", folder / "float")))
    run.write_config(build(RunConfig, {**tree(run.read_config()), "edits": []}))
    wide = ["--model.width=256", "--model.hidden=256", "--budget=1ktok"]
    assert main(["train", *words, *wide, "--out", str(folder / "wide")]) == 0
    return {name: folder / name for name in ("ternary", "float", "wide")}


def losses(shown: str) -> tuple[float, float]:
    found = re.search(r"held-out +([\d.]+) before, ([\d.]+) after", shown)
    assert found
    return float(found[1]), float(found[2])


def test_a_ternary_run_keeps_its_loss_and_writes(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = runs["ternary"], tmp_path / "packed"
    assert main(["quantise", str(run), "--to", "ternary1.6", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "4, the ternary ones that the run was trained with, exactly" in shown
    before, after = losses(shown)
    reported = json.loads((run / "summary.json").read_text())["heldout_loss"]
    assert before == pytest.approx(reported, abs=2e-3)
    # int8 activations and an 8-bit embedding
    assert after == pytest.approx(before, abs=0.02)
    assert main(["quantise", str(run), "--to", "ternary1.6", "--out", str(tmp_path / "again"), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["heldout_before"]["loss"] == pytest.approx(before, abs=1e-4)
    assert measured["heldout_after"]["loss"] == pytest.approx(after, abs=1e-4)
    assert (measured["path"], measured["matrices"]["trained"]) == (str(tmp_path / "again"), 4)
    assert measured["bytes"] == sum(part["bytes"] for part in measured["parts"])
    size = (out / "model.safetensors").stat().st_size
    counted = [int(count.replace(",", "")) for count in re.findall(r"weights +([\d,]+) bytes", shown)]
    assert sum(counted) == size
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "ledger.jsonl",
    }
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert [line["event"] for line in ledger] == ["before", "pack", "after"]
    model = load_trained(run).model
    spent = [line["accounts"]["evaluation"]["flops"] for line in (ledger[0], ledger[2])]
    assert spent == [model.cost(Shape(256 // 32, 32)).flops] * 2
    assert ledger[2]["seconds"]["evaluate"] > 0
    assert main(["generate", str(out), "line 1", "--tokens", "8"]) == 0
    written = capsys.readouterr().out
    assert written.startswith("line 1")
    assert main(["generate", str(out), "line 1", "--tokens", "8"]) == 0
    assert capsys.readouterr().out == written
    assert main(["generate", str(out), "x" * 31, "--tokens", "8"]) == 0
    assert "reads 32 tokens" in capsys.readouterr().err


def test_a_run_trained_in_float_is_told_what_it_costs(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantise", str(runs["float"]), "--to", "ternary2", "--embedding", "4"]) == 0
    shown = capsys.readouterr().out
    assert "rounded to ternary now: this costs quality" in shown
    before, after = losses(shown)
    assert after != before
    assert (runs["float"] / "ternary2" / "model.safetensors").is_file()
    assert main(["quantise", str(runs["float"]), "--to", "ternary2"]) == 2
    assert "exists: name another with --out" in capsys.readouterr().err


def test_a_checkpoint_from_before_quantising_is_not_called_ternary(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = ("--edits=ternary", "--edits.ternary.active=late", "--edits.ternary.active.fraction=0.5", "--train.keep=100")
    words = ["--budget=2560tok", f"--data.corpus={corpus}", *TINY, *late, "--train.checkpoint_every=0.0001"]
    run = tmp_path / "run"
    assert main(["train", *words, "--train.sample_tokens=0", "--out", str(run)]) == 0
    steps = list_checkpoints(RunFolder(run).checkpoints)
    begun = [load_trained(run, step).quantised for step in steps]
    assert not begun[0]
    assert begun[-1]
    assert begun == sorted(begun)
    first = steps[begun.index(True)]
    for step in steps:
        if step >= first:
            shutil.rmtree(RunFolder(run).checkpoints / f"step-{step:08d}")
    capsys.readouterr()
    assert main(["quantise", str(run), "--to", "ternary2", "--unmeasured"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"4, trained in floating point until step {first - 1}, as quantising begins later in this run" in shown
    assert "exactly" not in shown


def test_it_becomes_gguf(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    out = tmp_path / "model.gguf"
    assert main(["quantise", str(runs["wide"]), "--to", "tq2_0", "--out", str(out), "--unmeasured"]) == 0
    shown = capsys.readouterr().out
    assert "stored in F16" not in shown
    assert "matrices     4, the ternary ones" in shown
    assert "in the file  7 ternary matrices and 0 in F16" in shown
    assert "held-out" not in shown
    types = [tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors]
    assert len(types) == 13
    assert types.count("TQ2_0") == 7
    assert main(["quantise", str(runs["wide"]), "--to", "TQ2_0", "--out", str(out)]) == 2


@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0"])
def test_a_file_that_would_hold_nothing_ternary_is_refused_and_the_fix_is_named(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    out = tmp_path / "model.gguf"
    for run in ("ternary", "float"):
        assert main(["quantise", str(runs[run]), "--to", kind, "--out", str(out)]) == 2
        assert capsys.readouterr().err == (
            f"shoestring: {kind} has blocks of 256 columns, and no matrix of this model has a multiple of that (32, 96): train "
            "it with --model.width 256 --model.hidden 768, or pack this one with --to ternary2, which takes any width\n"
        )
    assert not out.exists()


def test_gguf_is_measured_as_it_is_stored(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    measured: dict[str, Transformer] = {}

    def text(model: Transformer, ledger: Ledger, event: str) -> Heldout:
        measured[event] = model
        return Heldout(1.0 + len(measured), 1.0, 256)

    monkeypatch.setattr(quantise, "_text", lambda trained: text)
    out = tmp_path / "model.gguf"
    assert main(["quantise", str(runs["wide"]), "--to", "TQ2_0", "--embedding", "8", "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    said = "2.0000 before, 3.0000 after rounding, computed here in float32 (+1.0000 nats a token; llama.cpp rounds"
    assert said in shown
    table = next(one for one in gguf.GGUFReader(out).tensors if one.name == "token_embd.weight")
    stored = torch.from_numpy(gguf.quants.dequantize(table.data, table.tensor_type))
    assert torch.equal(measured["after"].embedding.weight, stored.view(-1, 256))
    assert not torch.equal(measured["before"].embedding.weight, stored.view(-1, 256))


def test_wrong_words_are_refused_in_one_line(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, complaint in (
        ([str(runs["float"]), "--to", "ternary3"], "did you mean 'ternary"),
        ([str(runs["float"])], "--to"),
        ([str(runs["float"]), "--to", "ternary2", "--embedding", "5"], "--embedding"),
        ([str(tmp_path / "none"), "--to", "ternary2"], "no such run"),
    ):
        assert main(["quantise", *words]) == 2
        assert complaint in capsys.readouterr().err
    packed = tmp_path / "damaged"
    assert main(["quantise", str(runs["ternary"]), "--to", "ternary2", "--out", str(packed), "--unmeasured"]) == 0
    file = packed / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert main(["generate", str(packed), "x"]) == 1
    assert "damaged" in capsys.readouterr().err


def test_the_doctor_names_the_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.budget.machine import Machine
    from shoestring.cli import doctor

    machine = Machine("cpu", "some", 1, 1 << 30, (), {"float32": 1e9, "bfloat16": 1e9}, 1e9)
    monkeypatch.setattr(doctor, "probe", lambda fresh: machine)
    monkeypatch.setattr(doctor, "matmul_rate", lambda *given: 1e9)
    monkeypatch.setattr(doctor.kernels, "kernel_in_use", lambda: "torch")
    monkeypatch.setattr(doctor.kernels, "reason", lambda: "no library; slow")
    assert main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["packed_kernel"] == "torch"
    assert "packed models: no library; slow" in printed["slow"]
    assert printed["machine"]["matmul"] == machine.matmul
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "the kernel 'torch'" in shown
    assert "packed models: no library; slow" in shown
    assert "on the GPU" not in shown
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    for found, said in (
        (("triton", ""), "packed models on the GPU: 'triton' was never timed beside dense products"),
        (("torch", "no Triton"), "packed models on the GPU: no Triton"),
    ):
        monkeypatch.setattr(doctor.gpu, "kernel_in_use", lambda found=found: found)
        assert main(["doctor"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"and on the GPU by the kernel '{found[0]}'" in shown
        assert said in shown


def test_blocks_that_the_native_decoder_does_not_know_are_said_to_be_slow(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--budget=2ktok", f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0", "--edits=ternary"]
    run, out = tmp_path / "run", tmp_path / "packed"
    assert main(["train", *words, "--model.channel_mixer", "squared_relu", "--out", str(run)]) == 0
    assert main(["quantise", str(run), "--to", "ternary2", "--unmeasured", "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["generate", str(out), "line 1", "--tokens", "2"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(
        "(slow: every token goes module by module, as blocks.0 has Attention and SquaredReLU, where "
    )
