"""GGUF files: the weights, sizes and logits of the model that was written, and its tokenizer; what cannot be is said."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from shoestring.base import open_model
from shoestring.base.gguf_file import CHUNK, read_header, read_tensor
from shoestring.contract.batch import Inputs
from shoestring.data.bpe import train_bpe
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.transformer import Transformer
from tests.base import making
from tests.base.pieces import tokenizer_model

gguf: Any = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, biases": {"attention_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_neox, one after the other": {"rotary_pct": 1.0, "use_parallel_residual": False},
}


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.read(Inputs(ids)).logits()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_model_that_was_written(family: str, tmp_path: Path) -> None:
    theirs = making.stock(family.partition(",")[0], **FAMILIES[family])
    making.write_gguf(theirs, tmp_path / "a.gguf")
    opened = open_model(str(tmp_path / "a.gguf"))
    assert isinstance(opened.model, Transformer)
    assert not opened.model.training
    ids = making.ids(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(logits(opened.model, ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    assert opened.tokenizer is None
    assert opened.about.kind == "gguf"
    assert opened.about.notes == ("it has no tokenizer",)


TYPES = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "TQ1_0",
    "TQ2_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)


@pytest.mark.parametrize("kind", TYPES)
def test_the_weights_are_what_the_blocks_stand_for(kind: str, tmp_path: Path) -> None:
    theirs = making.stock("qwen2", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    expected = making.write_gguf(theirs, tmp_path / "a.gguf", kind)
    opened = open_model(str(tmp_path / "a.gguf"), torch.float32)
    state = opened.model.state_dict()  # type: ignore[attr-defined]
    block = "blocks.0."
    for ours, names in {
        "embedding": ["token_embd"],
        "head": ["output"],
        f"{block}token_mixer.qkv": [f"blk.0.attn_{part}" for part in "qkv"],
        f"{block}token_mixer.output": ["blk.0.attn_output"],
        f"{block}channel_mixer.gate_up": ["blk.0.ffn_gate", "blk.0.ffn_up"],
        f"{block}channel_mixer.output": ["blk.0.ffn_down"],
    }.items():
        assert torch.equal(state[f"{ours}.weight"], torch.cat([expected[f"{name}.weight"] for name in names])), ours
    stored = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    assert open_model(str(tmp_path / "a.gguf")).model.embedding.weight.dtype == stored  # type: ignore[attr-defined]
    said = opened.about.values["types"]
    assert said == sorted({kind, "F32"})
    assert (kind in "F32 F16 BF16") == ("rounded" not in opened.about.notes[0])


def test_a_type_without_floats_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    making.write_gguf(making.stock("llama"), tmp_path / "a.gguf", "Q8_0")

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(UsageError, match="in Q8_0 cannot be read"):
        open_model(str(tmp_path / "a.gguf"))


def test_long_tensors_are_read_in_pieces(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    drawn = np.random.default_rng(0).standard_normal((3, CHUNK // 2 + 32), np.float32)
    writer.add_tensor(
        "long", gguf.quants.quantize(drawn, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("after", drawn)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    file = read_header(tmp_path / "a.gguf")
    found = read_tensor(file, "long", torch.float32)
    assert float((found - torch.from_numpy(drawn)).abs().max()) < 0.03
    assert torch.equal(read_tensor(file, "after", torch.float32), torch.from_numpy(drawn))


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_frequencies(kind: str, tmp_path: Path) -> None:
    theirs = making.stock("llama", rope_parameters=SCALINGS[kind])
    said = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0}
    if kind == "yarn":
        said["llama.rope.scaling.original_context_length"] = 16
    making.write_gguf(theirs, tmp_path / "a.gguf", metadata=said)
    ids = making.ids(1, 60)
    with torch.no_grad():
        found = logits(open_model(str(tmp_path / "a.gguf")).model, ids)
        torch.testing.assert_close(found, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("right", [True, False])
def test_llama_3_is_known_by_the_factors_of_its_frequencies(right: bool, tmp_path: Path) -> None:
    rule = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theirs = making.stock("llama", head_dim=64, rope_parameters=rule, max_position_embeddings=128)
    plain = 1 / 5e5 ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / theirs.model.rotary_emb.inv_freq).float()
    assert 1 == float(factors[0]) < float(factors[-1]) == 32
    theirs.model.register_buffer("factors", factors if right else factors.sqrt())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    names.mapping["model.factors"] = (None, "rope_freqs.weight")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf, "get_tensor_name_map", lambda *_: names)
        patched.setattr(names, "get_name", _with_factors(names.get_name))
        said = {"llama.attention.key_length": 64, "llama.attention.value_length": 64}
        making.write_gguf(theirs, tmp_path / "a.gguf", metadata=said)
    if not right:
        with pytest.raises(UsageError, match="not by Llama 3's rule"):
            open_model(str(tmp_path / "a.gguf"))
        return
    ids = making.ids(1, 100)
    with torch.no_grad():
        found = logits(open_model(str(tmp_path / "a.gguf")).model, ids)
        torch.testing.assert_close(found, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def _with_factors(get_name: Callable[..., str | None]) -> Callable[..., str | None]:
    return lambda name, try_suffixes=(): (
        "rope_freqs.weight" if name == "model.factors" else get_name(name, try_suffixes=try_suffixes)
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "gpt2"}, "of the architecture 'gpt2'"),
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "window": ({"llama.attention.sliding_window": 8}, "a sliding window of 8 tokens"),
    "values": ({"llama.attention.key_length": 16, "llama.attention.value_length": 8}, "different widths"),
    "layers": ({"llama.block_count": 1 << 30}, "1073741824 layers are told, and there are 21 tensors"),
    "fewer layers": ({"llama.block_count": 1}, "'blk.1.attn_q.weight' is the name of no weight"),
    "context": ({"llama.context_length": 1 << 30}, "a context of 1073741824 tokens"),
    "scaling": ({"llama.rope.scaling.type": "longrope"}, "rotary scaling of the type 'longrope'"),
    "width": ({"llama.embedding_length": 32}, "has the shape"),
    "no heads": ({"llama.attention.head_count": 0}, "head_count is 0, and no number of at least 1"),
    "epsilon": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan, and no number above 0"),
    "partly rotated": ({"llama.attention.key_length": 16, "llama.rope.dimension_count": 8}, "8 of 16 features"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_native_model_cannot_be_is_refused_by_name(what: str, tmp_path: Path) -> None:
    said, complaint = REFUSED[what]
    making.write_gguf(making.stock("llama"), tmp_path / "a.gguf")
    again = _rewritten(tmp_path / "a.gguf", said)
    with pytest.raises(UsageError, match=complaint):
        open_model(str(again))


def _rewritten(path: Path, said: dict[str, Any]) -> Path:
    """A copy of a GGUF file with other values in its metadata."""
    reader, file = gguf.GGUFReader(path), read_header(path)
    writer = gguf.GGUFWriter(path.with_name("b.gguf"), str(said.get("general.architecture", "llama")))
    for key, value in {**file.metadata, **said}.items():
        if key != "general.architecture":
            kind = gguf.GGUFValueType.get_type(value)
            if isinstance(value, int) and abs(value) >= 1 << 31:
                kind = gguf.GGUFValueType.UINT64
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path.with_name("b.gguf")


def header(*parts: bytes | int | str) -> bytes:
    """Bytes of a header: texts with their length, numbers of eight bytes."""
    made = b"GGUF" + struct.pack("<I", 3)
    for part in parts:
        if isinstance(part, str):
            made += struct.pack("<Q", len(part.encode())) + part.encode()
        else:
            made += struct.pack("<Q", part) if isinstance(part, int) else part
    return made


def u4(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"GGUF", "is cut short|cannot be read"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
    "version 1": (b"GGUF" + u4(1) + bytes(16), "version 1"),
    "2^60 entries": (header(0, 1 << 60, "k", u4(4, 7)), "cut short"),
    "2^60 tensors": (header(1 << 60, 0), "cut short"),
    "a list of 2^60 numbers": (header(0, 1, "k", u4(9, 4), 1 << 60), "a list of 1152921504606846976 numbers"),
    "a list of 2^60 texts": (header(0, 1, "k", u4(9, 8), 1 << 60), "a list of 1152921504606846976 texts"),
    "a text of 2^60 bytes": (header(0, 1, 1 << 60), "cut short"),
    "lists in lists": (header(0, 1, "k", u4(9, 9), 1, u4(9), 1), "the unknown type 9"),
    "no UTF-8": (header(0, 1, 2, b"\xff\xff", u4(4, 1)), "not UTF-8"),
    "a key twice": (header(0, 2, "k", u4(4, 1), "k", u4(4, 1)), "'k' is there twice"),
    "a tensor of 2^60 numbers": (header(1, 0, "t", u4(1), 1 << 39, u4(0), 0, bytes(64)), "beyond its end"),
    "2^63 columns": (header(1, 0, "t", u4(1), 1 << 63, u4(0), 0, bytes(64)), "has the shape"),
    "no columns": (header(1, 0, "t", u4(1), 0, u4(0), 0, bytes(64)), "has the shape"),
    "4000 dimensions": (header(1, 0, "t", u4(4000), bytes(64)), "4000 dimensions"),
    "an unknown type": (header(1, 0, "t", u4(1), 32, u4(999), 0, bytes(64)), "of type 999"),
    "half a block": (header(1, 0, "t", u4(1), 33, u4(8), 0, bytes(64)), "no multiple of Q8_0's 32"),
    "one over the other": (
        header(2, 0, "t", u4(1), 8, u4(0), 0, "u", u4(1), 8, u4(0), 0, bytes(128)),
        "lies over another",
    ),
    "one twice": (header(2, 0, "t", u4(1), 8, u4(0), 0, "t", u4(1), 8, u4(0), 32, bytes(128)), "is there twice"),
    "an alignment of 0": (header(0, 1, "general.alignment", u4(4, 0)), "an alignment of 0"),
    "beyond the end": (header(1, 0, "t", u4(1), 8, u4(0), (1 << 64) - 32, bytes(64)), "beyond its end"),
    "no architecture": (header(0, 0), "of the architecture ''"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(what: str, tmp_path: Path) -> None:
    content, complaint = HOSTILE[what]
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ShoestringError, match=complaint) as refused:
        open_model(str(tmp_path / "a.gguf"))
    assert "\n" not in str(refused.value)


def test_equal_files_have_equal_digests(tmp_path: Path) -> None:
    theirs = making.stock("llama")
    for name in ("a", "b"):
        making.write_gguf(theirs, tmp_path / f"{name}.gguf")
    with torch.no_grad():
        theirs.model.norm.weight[0] += 1
    making.write_gguf(theirs, tmp_path / "c.gguf")
    first, second, third = (open_model(str(tmp_path / f"{name}.gguf")).about.digest for name in "abc")
    assert first == second != third


TEXT = "Some words, some 1234 numbers and été, 日本語 😀; def f(x):\n    return x[10]\n\n\n  it's HE'LL  end   "


def test_a_byte_level_tokenizer_is_transformers(tmp_path: Path) -> None:
    """Names of ways to cut text that transformers knows, too; of the others it knows nothing."""
    trained = train_bpe([TEXT * 3, Path(making.__file__).read_text()], making.VOCABULARY)
    tokens = [trained.token(place) for place in range(trained.vocabulary)]
    merges = _merges(trained)
    for name in ("qwen2", "llama-bpe", "tekken", "gpt-2"):
        making.write_gguf(
            making.stock("llama"),
            tmp_path / "a.gguf",
            tokens=lambda writer, name=name: making.add_tokens(
                writer, "gpt2", tokens, [3] + [1] * (len(tokens) - 1), 0, pre=name, merges=merges
            ),
        )
        opened = open_model(str(tmp_path / "a.gguf"))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
        assert opened.tokenizer is not None, opened.about.notes
        assert opened.tokenizer.encode(TEXT) == theirs.encode(TEXT, add_special_tokens=False), name
        assert opened.tokenizer.decode(opened.tokenizer.encode(TEXT)) == TEXT
        assert opened.tokenizer.end == 0
        assert len(opened.about.notes) == 0


def _merges(tokenizer: Any) -> list[str]:
    return [" ".join(pair) for pair in json.loads(tokenizer.rules.to_str())["model"]["merges"]]


def test_an_unknown_way_to_cut_text_is_said(tmp_path: Path) -> None:
    trained = train_bpe([TEXT], 260)
    tokens = [trained.token(place) for place in range(trained.vocabulary)]
    making.write_gguf(
        making.stock("llama"),
        tmp_path / "a.gguf",
        tokens=lambda writer: making.add_tokens(
            writer, "gpt2", tokens, [3] + [1] * (len(tokens) - 1), 0, pre="own", merges=_merges(trained)
        ),
    )
    opened = open_model(str(tmp_path / "a.gguf"))
    assert opened.tokenizer is not None
    assert "cuts text in a way named 'own', which is not known here" in opened.about.notes[0]


def test_a_sentencepiece_tokenizer_is_transformers(tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    processor = tokenizer_model(tmp_path / "pieces", "bpe", ["été", TEXT, Path(making.__file__).read_text()], 400)
    count = processor.get_piece_size()
    kinds = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
    types = [next((kind for name, kind in kinds.items() if getattr(processor, name)(i)), 1) for i in range(count)]
    tokens, scores = [processor.id_to_piece(i) for i in range(count)], [processor.get_score(i) for i in range(count)]

    def write(writer: Any) -> None:
        making.add_tokens(writer, "llama", tokens, types, 2, bos_token_id=1, unknown_token_id=0)
        writer.add_token_scores(scores)

    making.write_gguf(making.stock("llama"), tmp_path / "a.gguf", tokens=write)
    opened = open_model(str(tmp_path / "a.gguf"))
    assert opened.tokenizer is not None, opened.about.notes
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    for text in (TEXT, "a", "words\nand words", "é" * 5):
        found = opened.tokenizer.encode(text)
        assert found == processor.encode(text)
        assert found == theirs.encode(text, add_special_tokens=False)
    assert (opened.tokenizer.begin, opened.tokenizer.end) == (1, 2)
