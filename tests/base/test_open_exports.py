"""What this program exports, it opens again: the logits of the model that was exported, and its tokens."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from shoestring.base import open_model
from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.data.bpe import train_bpe
from shoestring.lowbit import lower
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.model import ModelConfig, Transformer
from shoestring.model.hf import export
from shoestring.shrink.conduct import dense
from shoestring.shrink.gguf_file import as_stored, write_gguf
from shoestring.shrink.rounding import ternaries
from tests.base import making

TEXT = Path(making.__file__).read_text()
WORDS = " ".join(re.findall(r"[a-z]+", TEXT))


def logits(model: object) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.read(Inputs(making.ids(2, 20) % 300)).logits()  # type: ignore[attr-defined]
    return found


def made(**shape: object) -> Transformer:
    torch.manual_seed(1)
    sizes = {
        "layers": 2,
        "width": 256,
        "heads": 4,
        "key_value_heads": 2,
        "hidden": 512,
        "vocabulary": 300,
        "context": 24,
    }
    model = Transformer(build(ModelConfig, {**sizes, **shape}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.eval()


SHAPES: dict[str, dict[str, object]] = {
    "qwen3": {},
    "llama": {"token_mixer": {"name": "attention", "qk_norm": False}},
    "untied, scaled": {"tied": False, "input_scale": 2.0, "output_scale": 0.5},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_transformers_folder(shape: str, tmp_path: Path) -> None:
    model, tokenizer = made(**SHAPES[shape]), train_bpe([TEXT], 300)
    tokenizer.save(tmp_path / "tokenizer")
    export(model, tmp_path / "tokenizer", tmp_path / "out", end=tokenizer.end)
    opened = open_model(str(tmp_path / "out"))
    torch.testing.assert_close(logits(opened.model), logits(model), atol=1e-4, rtol=1e-4)
    assert opened.tokenizer is not None
    assert opened.tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    assert opened.tokenizer.end == tokenizer.end
    assert opened.about.values["ends"] == [tokenizer.end]


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the extra 'gguf' is not installed")
@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gguf_file(shape: str, kind: str, tmp_path: Path) -> None:
    model, tokenizer = made(**SHAPES[shape]), train_bpe([TEXT], 300)
    lower(model, Ternary())
    ternary = dense(model, ternaries(model)).eval()
    write_gguf(tmp_path / "a.gguf", ternary, tokenizer, kind)  # type: ignore[arg-type]
    opened = open_model(str(tmp_path / "a.gguf"))
    torch.testing.assert_close(logits(opened.model), logits(as_stored(ternary, 16)), atol=1e-4, rtol=1e-4)
    assert opened.about.values["types"][-1] == kind
    assert opened.tokenizer is not None
    # llama.cpp has a rule of its own for where text is cut, and the file names the nearest: plain words are cut alike by both
    assert opened.tokenizer.encode(WORDS) == tokenizer.encode(WORDS)
    assert opened.tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert opened.tokenizer.end == tokenizer.end
