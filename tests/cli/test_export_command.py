"""`shoestring export`: the numbers of the model in transformers' folder and in GGUF, edits folded, nothing overwritten."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.base import Opened, Provenance, open_model
from shoestring.cli import export
from shoestring.data.bpe import byte_tokenizer
from shoestring.train.stored_run import stored_run
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring

gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")

IDS = torch.arange(24)[None] * 7 % 250
TEMPLATE = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Qwen3, a Llama, a run with ternary weights, and two on that: an adapter, and one that goes on training."""
    folder = tmp_path_factory.mktemp("export")
    words = ("train", "--budget=1ktok", f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0")
    wide = ("--model.width=256", "--model.hidden=256", "--model.heads=4")
    on = (f"--model.base={folder / 'ternary'}", "--train.batch=4", "--model.context=32", "--execution.precision=float32",
          "--execution.compile=none", "--execution.loss=plain", "--execution.attention=flash")  # fmt: skip
    rates = ("--optim.lr=0.05", "--fallback.lr=0.05")
    tuned = ("train", "--budget=1ktok", f"--data.corpus={corpus}", *on, *rates, "--train.sample_tokens=0")
    made: dict[str, tuple[str, ...]] = {
        "qwen3": (*words, "--model.key_value_heads=1", "--model.tied=false"),
        "llama": (*words, "--model.token_mixer.qk_norm=false", "--model.key_value_heads=1"),
        "ternary": (*words, *wide, "--edits=ternary", "--edits.ternary.activations=int8"),
        "adapter": (*tuned, "--edits=lora"),
        "tuned": tuned,
    }
    for name, given in made.items():
        status, _, errors = shoestring(*given, "--out", folder / name)
        assert status == 0, errors
    return {name: folder / name for name in made}


def written(run: Path, out: Path, *words: object) -> dict[str, Any]:
    status, output, errors = shoestring("export", run, "--out", out, "--json", *words)
    assert status == 0, errors
    found: dict[str, Any] = json.loads(output)
    return found


@torch.no_grad()
def logits(opened: Opened) -> Tensor:
    from shoestring.contract.batch import Inputs

    return opened.model.read(Inputs(IDS)).logits()


@torch.no_grad()
def theirs(folder: Path, **more: Any) -> Tensor:
    from transformers import AutoModelForCausalLM

    found: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)(IDS).logits
    return found


@pytest.mark.parametrize("name", ["qwen3", "llama", "ternary", "adapter", "tuned"])
def test_transformers_computes_the_same(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    found = written(runs[name], tmp_path / "out", "--to", "transformers")
    own = open_model(str(runs[name]))
    here, there = logits(own), theirs(tmp_path / "out")
    if name in ("qwen3", "llama"):
        torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)
    else:
        # activations are rounded to int8 in the runs that train for it, and not in an export: single logits differ by 0.2, all
        # of them together by 0.0015 of their norm
        assert (there - here).norm() <= 0.01 * here.norm()
    # and so has what the run wrote itself at its end
    torch.testing.assert_close(theirs(runs[name] / "transformers"), theirs(tmp_path / "out"), atol=1e-6, rtol=0)
    assert found["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert found["folded"] == {"ternary": ["ternary"], "adapter": ["ternary", "lora"], "tuned": ["ternary"]}.get(
        name, []
    )
    assert any("activations of 4 matrices" in note for note in found["notes"]) == (
        name in ("ternary", "adapter", "tuned")
    )
    assert own.tokenizer is not None
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a text")["input_ids"] == own.tokenizer.encode("a text")


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 1e-4), ("F16", 0.01), ("bfloat16", 0.1), ("q8_0", 0.2)])
@pytest.mark.parametrize("name", ["qwen3", "llama", "adapter"])
def test_gguf_holds_the_numbers(runs: dict[str, Path], tmp_path: Path, name: str, kind: str, tolerance: float) -> None:
    out = tmp_path / "model.gguf"
    found = written(runs[name], out, "--to", "gguf", "--dtype", kind)
    kind = {"bfloat16": "BF16", "q8_0": "Q8_0"}.get(kind, kind)
    assert (found["dtype"], found["bytes"]) == (kind, out.stat().st_size)
    reader = gguf.GGUFReader(out)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {kind, "F32"}
    assert reader.fields["general.architecture"].contents() == ("llama" if name == "llama" else "qwen3")
    written(runs[name], tmp_path / "folder", "--to", "transformers")
    torch.testing.assert_close(
        theirs(tmp_path, gguf_file="model.gguf"), theirs(tmp_path / "folder"), atol=tolerance, rtol=tolerance
    )


def test_ternary_weights_leave_in_ternary_blocks(runs: dict[str, Path], tmp_path: Path) -> None:
    written(runs["ternary"], tmp_path / "a.gguf", "--to", "gguf", "--dtype", "TQ2_0")
    types = [tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors]
    assert types.count("TQ2_0") == 7
    status, _, errors = shoestring("export", runs["llama"], "--to=gguf", "--dtype=TQ2_0", "--out", tmp_path / "b.gguf")
    assert status == 2
    assert "blocks of 256 columns" in errors


def test_a_chat_template_goes_along(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    def with_template(found: Opened) -> Opened:
        return dataclasses.replace(found, about=dataclasses.replace(found.about, chat_template=TEMPLATE))

    def stored(place: str) -> tuple[Opened, Mapping[str, Tensor]] | None:
        found = stored_run(place)
        return None if found is None else (with_template(found[0]), found[1])

    monkeypatch.setattr(export, "open_model", lambda place: with_template(open_model(place)))
    monkeypatch.setattr(export, "stored_run", stored)
    assert written(runs["llama"], tmp_path / "folder", "--to", "transformers")["chat_template"]
    assert AutoTokenizer.from_pretrained(tmp_path / "folder").chat_template == TEMPLATE
    written(runs["llama"], tmp_path / "a.gguf", "--to", "gguf")
    assert gguf.GGUFReader(tmp_path / "a.gguf").fields["tokenizer.chat_template"].contents() == TEMPLATE


def test_columns_without_whole_blocks_are_said(corpus: Path, tmp_path: Path) -> None:
    sizes = ("--model.width=48", "--model.hidden=80")
    words = ("train", "--budget=1ktok", f"--data.corpus={corpus}", *TINY, *sizes, "--train.sample_tokens=0")
    assert shoestring(*words, "--out", tmp_path / "run")[0] == 0
    status, output, _ = shoestring(
        "export", tmp_path / "run", "--to=gguf", "--dtype=Q8_0", "--out", tmp_path / "a.gguf"
    )
    assert status == 0
    assert "are F16: their columns are no multiple of 32" in output
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors} == {"F32", "F16"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--to", "onnx", "--out", "OUT"], "--to onnx: known: gguf, peft, transformers"),
        (["RUN", "--to", "gguf"], "the following arguments are required: --out"),
        (["RUN", "--to", "gguf", "--out", "OUT", "--dtype", "Q8"], "--dtype Q8: did you mean 'Q8_0'?"),
        (["RUN", "--to", "transformers", "--out", "OUT", "--dtype", "Q8_0"], "--dtype Q8_0: known: bfloat16"),
        (["RUN", "--to", "transformers", "--out", "RUN"], "exists: name another with --out"),
        (["nowhere", "--to", "gguf", "--out", "OUT"], "nowhere is no model that can be opened"),
        (["PACKED", "--to", "transformers", "--out", "OUT"], "a packed model is not exported"),
        (["PACKED", "--to", "gguf", "--out", "OUT"], "a packed model is not exported"),
    ],
)
def test_bad_words_are_one_line_and_write_nothing(
    runs: dict[str, Path], tmp_path: Path, words: list[str], said: str
) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out"
    if "PACKED" in words:
        assert shoestring("quantise", runs["ternary"], "--to=ternary2", "--unmeasured", "--out", packed)[0] == 0
    places = {"RUN": runs["llama"], "OUT": out, "PACKED": packed}
    status, output, errors = shoestring("export", *(places.get(word, word) for word in words))
    assert (status, output) == (2, "")
    assert said in errors
    assert errors.count("\n") == 1
    assert not out.exists()


def test_what_cannot_be_written_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(str(runs["llama"]))
    with torch.no_grad():
        opened.model.blocks[0].token_mixer.output.weight[0, 0] = 1e6  # type: ignore[attr-defined]
    monkeypatch.setattr(export, "open_model", lambda place: opened)
    status, _, errors = shoestring("export", "here", "--to=gguf", "--dtype=F16", "--out", tmp_path / "a.gguf")
    assert status == 1
    assert "has weights that float16 cannot hold" in errors
    assert not list(tmp_path.iterdir())


def test_a_wrapped_model_is_written_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    class Wrapped(torch.nn.Module):
        def __init__(self, stock: Any) -> None:
            super().__init__()
            self.stock = stock

    sizes = {"vocab_size": 257, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes)).eval()
    with torch.no_grad():
        expected = stock(IDS).logits
    about = Provenance("here", "transformers", "")
    monkeypatch.setattr(export, "open_model", lambda place: Opened(Wrapped(stock), byte_tokenizer(), about))  # type: ignore[arg-type]
    status, _, errors = shoestring("export", "here", "--to=gguf", "--out", tmp_path / "a.gguf")
    assert status == 2
    assert "llama, mistral, qwen2, qwen3, not gpt2" in errors
    written(Path("here"), tmp_path / "folder", "--to", "transformers")
    torch.testing.assert_close(theirs(tmp_path / "folder"), expected)
    assert (tmp_path / "folder" / "tokenizer.json").is_file()
