"""Stock models as GGUF: read back by transformers, with the same logits, for each family; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.data.bpe import byte_tokenizer
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError
from shoestring.shrink.gguf_tokenizer import _pattern
from shoestring.shrink.gguf_writer import write_stock

gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")

SIZES: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "tie_word_embeddings": False}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 24}),
}


def stock(name: str, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, own = MODELS[name]
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **own, **more)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1) * 1.0)
    return made


def write(path: Path, made: Any, tokenizer: TextTokenizer | None = None) -> dict[str, str]:
    return write_stock(path, made, tokenizer or byte_tokenizer(), lambda *_: "F32", "F32")


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_it_back(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    made = stock(name)
    types = write(tmp_path / "a.gguf", made)
    assert set(types.values()) == {"F32"}
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert ("blk.1.attn_q.bias" in types) == (name in ("llama with biases", "qwen2"))
    assert ("llama.rope.scaling.factor" in fields) == (name == "llama, linear")
    if name in ("llama with biases", "llama, linear"):
        return  # transformers reads neither from a GGUF file
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    ids = torch.arange(30)[None] * 7 % 257
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, made(ids).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "yarn scaling"),
        ("llama", {"mlp_bias": True}, "biases in its feed-forward layers"),
        ("llama", {"hidden_act": "gelu"}, "the activation 'gelu'"),
        ("qwen3", {"attention_bias": True}, "biases of queries and keys"),
    ],
)
def test_what_it_does_not_write_is_refused(tmp_path: Path, name: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        write(tmp_path / "a.gguf", stock(name, **more))
    assert not list(tmp_path.iterdir())


def test_a_window_and_other_families_are_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for kind, more, said in (
        ("mistral", {"sliding_window": 16}, "a sliding window"),
        ("gpt_neox", {}, "not gpt_neox"),
    ):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **more))
        with pytest.raises(UsageError, match=said):
            write(tmp_path / "a.gguf", made)


def test_the_token_before_each_text_is_written(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    write(tmp_path / "a.gguf", stock("llama"), tokenizer)
    tokenizer.begin = 3
    write(tmp_path / "b.gguf", stock("llama"), tokenizer)
    fields = [gguf.GGUFReader(tmp_path / f"{name}.gguf").fields for name in "ab"]
    found = [[one[f"tokenizer.ggml.{key}"].contents() for key in ("bos_token_id", "add_bos_token")] for one in fields]
    assert found == [[256, False], [3, True]]


BYTES = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}


@pytest.mark.parametrize(
    ("described", "name"),
    [
        (BYTES, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, BYTES]}, None),
        ({"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTES]}, None),
        ({"type": "Digits", "individual_digits": True}, None),
    ],
)
def test_ways_of_cutting_text_have_llama_cpps_names(described: object, name: str | None) -> None:
    assert _pattern(described) == name
