"""The GGUF file, read back with the package that defines it: the model's numbers, sizes, names and tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shoestring.config import build
from shoestring.data.bpe import byte_tokenizer, train_bpe
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError
from shoestring.lowbit import lower
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.model import ModelConfig, Transformer
from shoestring.shrink.conduct import dense
from shoestring.shrink.gguf_file import as_stored, write_gguf
from shoestring.shrink.gguf_tokenizer import SPLITS, _pattern
from shoestring.shrink.rounding import ternaries

gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")


def model(**shape: object) -> Transformer:
    torch.manual_seed(1)
    sizes = {"layers": 1, "width": 256, "heads": 4, "hidden": 512, "vocabulary": 257, "context": 24}
    made = Transformer(build(ModelConfig, {**sizes, **shape}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    lower(made, Ternary())
    return dense(made, ternaries(made))


def read(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray], dict[str, str]]:
    """(what it says, tensors as float32, their types)."""
    reader = gguf.GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        one.name: gguf.quants.dequantize(one.data, one.tensor_type).reshape(tuple(reversed(one.shape.tolist())))
        for one in reader.tensors
    }
    return said, tensors, {one.name: one.tensor_type.name for one in reader.tensors}


def test_a_qwen3_has_the_numbers_of_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, made = tmp_path / "model.gguf", model(key_value_heads=2, tied=False)
    written = write_gguf(path, made, byte_tokenizer(), "TQ1_0")
    said, tensors, types = read(path)
    assert not caplog.messages
    assert not written.wide
    assert written.bytes == path.stat().st_size
    assert written.rounding == 0  # a ternary scale is a float16's number
    qkv = made.blocks[0].token_mixer.qkv.weight.numpy(force=True)  # type: ignore[union-attr, operator]
    stacked = np.concatenate([tensors[f"blk.0.attn_{part}.weight"] for part in "qkv"])
    np.testing.assert_array_equal(stacked, qkv)
    np.testing.assert_array_equal(tensors["token_embd.weight"], made.embedding.weight.half().float().numpy(force=True))
    gain = made.blocks[0].token_mixer.query_norm.weight.numpy(force=True)  # type: ignore[union-attr, operator]
    np.testing.assert_array_equal(tensors["blk.0.attn_q_norm.weight"], gain)
    assert types["blk.0.ffn_down.weight"] == types["blk.0.attn_output.weight"] == "TQ1_0"
    assert types["token_embd.weight"] == types["output.weight"] == "F16"
    assert types["output_norm.weight"] == "F32"
    for key, value in {
        "general.architecture": "qwen3",
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 64,
        "qwen3.rope.freq_base": 10000.0,
        "qwen3.context_length": 24,
        "qwen3.feed_forward_length": 512,
        "qwen3.block_count": 1,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 256,
    }.items():
        assert said[key] == value


def test_a_llama_has_its_queries_and_keys_in_pairs(tmp_path: Path) -> None:
    made = model(token_mixer={"name": "attention", "qk_norm": False}, key_value_heads=2)
    write_gguf(tmp_path / "model.gguf", made, byte_tokenizer(), "TQ2_0", embedding=8)
    said, tensors, types = read(tmp_path / "model.gguf")
    assert said["general.architecture"] == "llama"
    assert "output.weight" not in tensors, "a tied head is the embedding"
    assert types["token_embd.weight"] == "Q8_0"
    qkv = made.blocks[0].token_mixer.qkv.weight  # type: ignore[union-attr]
    query, key, value = qkv.split([256, 128, 128])  # type: ignore[operator]
    for name, ours, heads in (("q", query, 4), ("k", key, 2)):
        for head in range(heads):
            for feature in range(32):
                for half in (0, 1):
                    theirs = tensors[f"blk.0.attn_{name}.weight"][head * 64 + 2 * feature + half]
                    mine = ours[head * 64 + 32 * half + feature].numpy(force=True)
                    np.testing.assert_allclose(theirs, mine, rtol=2**-11)
    np.testing.assert_allclose(tensors["blk.0.attn_v.weight"], value.numpy(force=True), rtol=2**-11)


def test_matrices_without_whole_blocks_are_in_float16_and_that_is_said(tmp_path: Path, said: list[str]) -> None:
    written = write_gguf(tmp_path / "a.gguf", model(hidden=480), byte_tokenizer(), "TQ2_0")
    assert written.wide == ("blk.0.ffn_down.weight",)
    assert "stored in F16" in said[0]
    assert read(tmp_path / "a.gguf")[2]["blk.0.ffn_down.weight"] == "F16"


@pytest.mark.parametrize("embedding", [16, 8])
@pytest.mark.parametrize("shape", [{}, {"tied": False, "input_scale": 2.0, "hidden": 480}], ids=["tied", "untied"])
def test_what_is_measured_is_what_is_stored(tmp_path: Path, shape: dict[str, object], embedding: int) -> None:
    made = model(**shape)
    write_gguf(tmp_path / "a.gguf", made, byte_tokenizer(), "TQ2_0", embedding=embedding)
    _, tensors, types = read(tmp_path / "a.gguf")
    found = as_stored(made, embedding).state_dict()
    assert types["token_embd.weight"] == {16: "F16", 8: "Q8_0"}[embedding]
    whole = (made.embedding.weight * made.config.input_scale).detach()
    assert 0 < float((found["embedding.weight"] - whole).abs().max()) < 2**-7 * float(whole.abs().max())
    names = {
        "embedding": ["token_embd"],
        "norm": ["output_norm"],
        "blocks.0.token_mixer.qkv": [f"blk.0.attn_{part}" for part in "qkv"],
        "blocks.0.channel_mixer.gate_up": ["blk.0.ffn_gate", "blk.0.ffn_up"],
        "blocks.0.channel_mixer.output": ["blk.0.ffn_down"],
    }
    if "head.weight" in found:
        names["head"] = ["output"]
    for ours, theirs in names.items():
        stacked = np.concatenate([tensors[f"{name}.weight"] for name in theirs])
        np.testing.assert_array_equal(found[f"{ours}.weight"].numpy(), stacked)


def trained_tokenizer() -> TextTokenizer:
    return train_bpe(["some text of some words, again and again: some text"] * 3, 300)


def test_tokens_are_named_and_merged_as_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = trained_tokenizer()
    size = tokenizer.vocabulary + 3
    write_gguf(tmp_path / "a.gguf", model(vocabulary=size), tokenizer, "TQ2_0")
    said = read(tmp_path / "a.gguf")[0]
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert len(tokens) == len(types) == size
    assert all(tokenizer.rules.id_to_token(place) == tokens[place] for place in range(tokenizer.vocabulary))
    assert types[tokenizer.end] == 3
    assert types[-3:] == [5, 5, 5]
    merged = {first + second for first, second in (pair.split(" ") for pair in said["tokenizer.ggml.merges"])}  # type: ignore[attr-defined]
    assert merged == set(tokens[257 : tokenizer.vocabulary])
    assert "qwen2" in caplog.messages[0]


def test_patterns_that_llama_cpp_knows_have_its_names() -> None:
    for regex, name in SPLITS.items():
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        assert (
            _pattern({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}) == name
        )
    assert _pattern({"type": "ByteLevel", "use_regex": True}) == "gpt-2"
    assert _pattern(None) is None


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="16 or 8 bits here, not 4"):
        write_gguf(tmp_path / "a.gguf", model(), byte_tokenizer(), "TQ2_0", embedding=4)
    with pytest.raises(UsageError, match="no stock transformers class"):
        other = model(channel_mixer="squared_relu")
        write_gguf(tmp_path / "a.gguf", other, byte_tokenizer(), "TQ2_0")
    with pytest.raises(UsageError, match="with llama3 scaling of its positions is not written"):
        scaling = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaling["original_max_position_embeddings"] = 32
        other = model(token_mixer={"name": "attention", "rope_scaling": scaling})
        write_gguf(tmp_path / "a.gguf", other, byte_tokenizer(), "TQ2_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
def test_transformers_reads_the_head_size_and_computes_the_same(tmp_path: Path, qk_norm: bool) -> None:
    from transformers import AutoModelForCausalLM

    mixer = {"name": "attention", "qk_norm": qk_norm, "rope_theta": 500.0}
    made = model(token_mixer=mixer, key_value_heads=2)
    write_gguf(tmp_path / "a.gguf", made, byte_tokenizer(), "TQ2_0")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    assert theirs.config.head_dim == made.config.head_width == 64
    ids = torch.arange(20)[None] * 7 % 256
    with torch.no_grad():
        expected = as_stored(made, 16)(ids)
        torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-4, rtol=1e-4)
