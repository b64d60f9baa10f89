"""The folder of a quantised model: the same model again, packed and plain; and damaged ones in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shoestring.base import open_model
from shoestring.config import Choice
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.grouped import GroupedEmbedding, GroupedLinear
from shoestring.model.layout import SpanAt
from shoestring.model.native_pass import NativePass
from shoestring.quantise.engine import quantise_layers
from shoestring.quantise.folder import FILE, contents_of, is_quantised, write_folder
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.formats.microscaling import Microscaling
from shoestring.quantise.transformed_linear import TransformedLinear
from tests.quantise import making


def kept(
    folder: Path, model: LanguageModule, form: Any, table_bits: int = 8, transform: str = "none"
) -> LanguageModule:
    """Quantise `model` to the nearest, and keep it in `folder`."""
    recipe = making.recipe(form, transform=transform, table_bits=table_bits)
    done = quantise_layers(model, making.text(), recipe)
    folder.mkdir()
    contents = contents_of(model, {**done.tables, **done.matrices}, {"ends": [7], "notes": ["a note"]})
    write_folder(folder, model, contents, None, "{{ messages }}")
    return model


@pytest.mark.parametrize("table_bits", [4, 8, 16])
@pytest.mark.parametrize("shape", ["native", "untied", "hybrid", "gemma2", "gpt2"])
def test_the_same_model_comes_back(shape: str, table_bits: int, tmp_path: Path) -> None:
    if shape.startswith("g") and table_bits == 4:
        table_bits = 8  # once is enough
    model = kept(tmp_path / "q", making.model_named(shape), IntegerGroups(code_bits=3), table_bits)
    expected = making.logits(model)
    plain = open_model(str(tmp_path / "q"), torch.float32)
    assert (plain.about.kind, plain.about.values["ends"], plain.tokenizer) == ("quantised", [7], None)
    assert "a note" in plain.about.notes
    torch.testing.assert_close(making.logits(plain.model), expected, atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]
    packed = open_model(str(tmp_path / "q"))
    found = making.logits(packed.model)  # type: ignore[arg-type]
    # activations are rounded to eight bits where products are packed
    assert float((found - expected).norm() / expected.norm()) < (0.05 if "g" not in shape else 1e-5)
    assert packed.about.digest == plain.about.digest == open_model(str(tmp_path / "q"), "packed").about.digest
    if shape.startswith("g"):
        assert any("transformers' own classes are not packed" in note for note in packed.about.notes)
        return
    inner: Any = packed.model
    assert sum(isinstance(module, GroupedLinear) for module in inner.modules()) == 4 * len(inner.blocks)
    assert isinstance(inner.embedding, GroupedEmbedding) == (table_bits < 16)
    assert isinstance(inner.native, NativePass)
    assert "stay packed" in packed.about.notes[0]


def test_a_narrow_embedding_comes_back_packed_with_its_matrix_in_numbers(tmp_path: Path) -> None:
    nano = Choice.of("model", "nano", kind="embedding", rank=8)
    mixer = Choice.of("model", "efficient_attention", kind="token mixer", kernel=4)
    model = kept(
        tmp_path / "q", making.native(embedding=nano, token_mixer=mixer, key_value_heads=4), IntegerGroups(code_bits=8)
    )
    expected = making.logits(model)
    plain, packed = (open_model(str(tmp_path / "q"), dtype).model for dtype in (torch.float32, None))
    torch.testing.assert_close(making.logits(plain), expected, atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]
    found = making.logits(packed)  # type: ignore[arg-type]
    assert float((found - expected).norm() / expected.norm()) < 0.05
    inner: Any = packed
    assert isinstance(inner.embedding, GroupedEmbedding)
    assert inner.cost(Shape(1, 3)).flops == model.cost(Shape(1, 3)).flops


def test_what_no_kernel_multiplies_is_plain_and_said(tmp_path: Path) -> None:
    model = kept(tmp_path / "q", making.native(), Microscaling(element="fp8_e4m3"))
    opened = open_model(str(tmp_path / "q"))
    assert any("8 matrices in microscaling are plain numbers here" in note for note in opened.about.notes)
    torch.testing.assert_close(making.logits(opened.model), making.logits(model), atol=0.05, rtol=0.05)  # type: ignore[arg-type]


def test_a_transform_is_done_where_the_model_runs(tmp_path: Path) -> None:
    model = kept(tmp_path / "q", making.native(), IntegerGroups(code_bits=4), transform="hadamard")
    opened = open_model(str(tmp_path / "q"))
    inner: Any = opened.model
    assert sum(isinstance(module, TransformedLinear) for module in inner.modules()) == 8
    assert any(note.startswith("slow: every token goes module by module") for note in opened.about.notes)
    found, expected = making.logits(inner), making.logits(model)
    assert float((found - expected).norm() / expected.norm()) < 0.05
    plain = open_model(str(tmp_path / "q"), torch.float32).model
    torch.testing.assert_close(making.logits(plain), expected, atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]
    # of a layer that reads 32 = 4 x 8 features: 12 products more for each of them
    more = inner.cost(Shape(1, 10)).flops - plain.cost(Shape(1, 10)).flops
    layers = [one for one in inner.modules() if isinstance(one, TransformedLinear)]
    reads = sum(one.in_features * (len(one.left) + len(one.right)) for one in layers)
    assert more == 2 * 10 * reads


@pytest.mark.parametrize("cut", [0, 5, 300, -1, -40])
def test_a_file_that_is_cut_short_is_refused(cut: int, tmp_path: Path) -> None:
    kept(tmp_path / "q", making.native(), IntegerGroups(code_bits=4))
    path = tmp_path / "q" / FILE
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ShoestringError, match="cut short, damaged"):
        open_model(str(tmp_path / "q"))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    kept(tmp_path / "q", making.native(), IntegerGroups(code_bits=4))
    path = tmp_path / "q" / FILE
    content = bytearray(path.read_bytes())
    for place in (len(content) // 2, len(content) - 3):
        other = bytearray(content)
        other[place] ^= 4
        path.write_bytes(bytes(other))
        with pytest.raises(ShoestringError, match="is damaged: its checksum"):
            open_model(str(tmp_path / "q"))


def rewritten(path: Path, change: Any) -> None:
    """A file with another description or tensors, its checksum made anew: as a hostile one would be."""
    from shoestring.quantise.described_file import KEY, digest

    with safe_open(path, "pt") as file:
        described = json.loads((file.metadata() or {})[KEY])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(described, tensors)
    described.pop("sha256")
    described["sha256"] = digest(described, tensors)
    save_file(tensors, path, {KEY: json.dumps(described)})


NAME = "blocks.0.token_mixer.qkv"
HOSTILE = {
    "another version": (lambda d, t: d.update(version=9), "has version 9"),
    "another format": (lambda d, t: d.update(format="x"), "is no quantised model"),
    "no matrices": (lambda d, t: d.update(matrices=3), "does not describe"),
    "an unknown number format": (lambda d, t: d["matrices"][NAME].update(format={"name": "x"}), "no number format"),
    "options that cannot be": (lambda d, t: d["matrices"][NAME]["format"].update(code_bits=99), "no number format"),
    "a size that is not there": (lambda d, t: d["matrices"][NAME].update(rows=1 << 30), "are not the codes"),
    "columns without end": (lambda d, t: d["matrices"][NAME].update(columns=1 << 40), "no size of a matrix"),
    "a missing part": (lambda d, t: t.pop(f"{NAME}:scale"), "scale are missing"),
    "a scale that is no number": (lambda d, t: t[f"{NAME}:scale"].fill_(torch.nan), "not finite"),
    "a norm that is no number": (lambda d, t: t["norm.weight"].fill_(torch.inf), "not finite"),
    "a part too many": (lambda d, t: t.update({f"{NAME}:more": torch.zeros(2)}), "belongs to no matrix"),
    "a tensor too few": (lambda d, t: t.pop("norm.weight"), "lacks the tensor norm.weight"),
    "a tensor too many": (lambda d, t: t.update(more=torch.zeros(2)), "has, and its model has not"),
    "another shape": (lambda d, t: t.update({"norm.weight": torch.zeros(2)}), "and the model's is"),
    "layers without end": (lambda d, t: d["config"].update(layers=4000), "too few tensors"),
    "a context without end": (lambda d, t: d["config"].update(context=1 << 24), "a context of"),
    "a model that cannot be": (lambda d, t: d["config"].update(heads=-3), "no model of this program"),
    "another width": (lambda d, t: d["config"].update(width=1 << 16), "and the model's is"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_file_says_is_not_trusted(case: str, tmp_path: Path) -> None:
    change, said = HOSTILE[case]
    kept(tmp_path / "q", making.native(), IntegerGroups(code_bits=4))
    rewritten(tmp_path / "q" / FILE, change)
    for dtype in (None, torch.float32):
        with pytest.raises(ShoestringError, match=said) as found:
            open_model(str(tmp_path / "q"), dtype)
        assert "\n" not in str(found.value)


def test_models_of_unlike_layers_are_refused(tmp_path: Path) -> None:
    model = making.native()
    channels: Any = model.blocks[0].channel_mixer
    channels.output = torch.nn.Linear(40, 32, bias=False)
    channels.gate_up = torch.nn.Linear(32, 80, bias=False)
    with pytest.raises(UsageError, match="unlike sizes"):
        contents_of(model, {}, {})
    pooled = making.native(span=(SpanAt("1:", Choice.of("model", "byte_pool", kind="span")),))
    with pytest.raises(UsageError, match=r"within a span \(byte_pool\)"):
        contents_of(pooled, {}, {})
    assert not is_quantised(tmp_path)
