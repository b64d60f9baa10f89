"""A packed model: the numbers of the trained one, its sizes, its text, and no folder that is something else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.data.bpe import byte_tokenizer
from shoestring.decode import Sampling, generate
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit import lower
from shoestring.lowbit.formats.integer import Integer
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.model import ModelConfig, Transformer
from shoestring.model.hf import export
from shoestring.shrink.folder import MODEL, is_packed, load_packed, save_packed
from shoestring.shrink.packed_transformer import PackedTransformer
from shoestring.shrink.rounding import pack, table, ternaries
from shoestring.shrink.sizes import parts

SHAPE = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 257, "context": 24}


def trained(lowbit: bool = True, keep: tuple[str, ...] = (), **shape: object) -> Transformer:
    """A model away from its start, its layers those of a run with --edits ternary --edits.ternary.activations int8."""
    torch.manual_seed(1)
    model = Transformer(build(ModelConfig, {**SHAPE, **shape}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    if lowbit:
        lower(model, Ternary(), "int8", keep)
    return model.eval()


def ids(rows: int = 2, length: int = 24) -> Tensor:
    return torch.randint(257, (rows, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def as_packed(model: Transformer, embedding: int) -> Transformer:
    """The trained model with the embedding that the packed one has: what is left is the order of sums."""
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        module.weight.copy_(table(module.weight, embedding)(torch.arange(257)))
    return model


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied, grouped": {"tied": False, "key_value_heads": 2},
    "no query-key norm": {"token_mixer": {"name": "attention", "qk_norm": False}},
    "squared ReLU, scaled": {"channel_mixer": "squared_relu", "hidden": 40, "input_scale": 2.0, "output_scale": 0.5},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_computes_what_the_trained_model_computes(shape: dict[str, Any]) -> None:
    model = trained(**shape)
    made = {layout: pack(model, ternaries(model), layout, 16) for layout in ("ternary2", "ternary1.6")}
    with torch.no_grad():
        hidden = {layout: packed.read(Inputs(ids())).hidden for layout, packed in made.items()}
        wanted = as_packed(model, 16).read(Inputs(ids())).hidden
    assert torch.equal(*hidden.values())
    # the same int8 activations on both sides: a rounding that falls the other way is all that can differ, and seldom does
    assert float((hidden["ternary2"] - wanted).abs().median()) < 1e-5
    torch.testing.assert_close(hidden["ternary2"], wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("embedding", [4, 8])
def test_logits_are_those_of_the_rounded_table(embedding: int) -> None:
    model = trained()
    packed = pack(model, ternaries(model), "ternary2", embedding)
    with torch.no_grad():
        found, wanted = packed(ids()), as_packed(model, embedding)(ids())
    # int8 hidden states: 1 / 254 of the largest of a vector
    assert float((found - wanted).std() / wanted.std()) < 0.02
    assert packed.read(Inputs(ids())).head.weight is None


def test_it_is_written_and_read_and_generates_the_same(tmp_path: Path) -> None:
    model = trained(tied=False)
    packed = pack(model, ternaries(model), "ternary1.6", 4)
    save_packed(tmp_path / "packed", packed, byte_tokenizer())
    assert is_packed(tmp_path / "packed")
    found = load_packed(tmp_path / "packed")
    with torch.no_grad():
        assert torch.equal(found.model(ids()), packed(ids()))
    assert found.model.config == model.config
    assert found.tokenizer.fingerprint == byte_tokenizer().fingerprint
    assert not any(tensor.is_meta for tensor in (*found.model.parameters(), *found.model.buffers()))
    greedy = Sampling(temperature=0)
    text, slowly = [7, 8, 9], [7, 8, 9]
    with torch.no_grad():
        for _ in range(12):
            slowly.append(int(packed(torch.tensor([slowly]))[0, -1].argmax()))
    assert list(generate(found.model, text, greedy, max_new_tokens=12)) == slowly[3:]
    assert packed.cost(Shape(2, 8)).flops == model.cost(Shape(2, 8)).flops
    assert packed.cost(Shape(1, 1)).moved < model.cost(Shape(1, 1)).moved / 4


def test_layers_that_the_run_kept_stay_as_they_are(tmp_path: Path) -> None:
    model = trained(keep=("blocks.0.*",))
    chosen = ternaries(model)
    assert len(chosen.trained) == len(chosen.kept) == 4
    packed = pack(model, chosen, "ternary2", 8)
    assert len(packed.packed) == 4
    save_packed(tmp_path, packed, byte_tokenizer())
    kept = load_packed(tmp_path).model.blocks[0].token_mixer.qkv  # type: ignore[union-attr]
    assert type(kept) is nn.Linear
    assert torch.equal(kept.weight, model.blocks[0].token_mixer.qkv.weight)  # type: ignore[union-attr, arg-type]
    assert "matrices kept in float32" in [part.name for part in parts(tmp_path / MODEL)]


def test_a_model_trained_otherwise_is_rounded_and_says_so() -> None:
    for model in (trained(lowbit=False), trained(lowbit=False)):
        chosen = ternaries(model)
        assert not chosen.trained
        assert len(chosen.rounded) == 8
        wanted = Ternary(scale="row").quantise(model.blocks[0].token_mixer.qkv.weight)  # type: ignore[union-attr, arg-type]
        assert torch.equal(chosen.rounded["blocks.0.token_mixer.qkv"].codes, wanted.codes)
    model = trained(lowbit=False)
    lower(model, Integer(bits=4))
    assert not ternaries(model).trained
    model.blocks[0].token_mixer.qkv.weight.data[0, 0] = torch.nan  # type: ignore[operator, union-attr]
    with pytest.raises(ShoestringError, match="NaN"):
        ternaries(model)


@pytest.mark.parametrize(("layout", "each"), [("ternary2", 0.25), ("ternary1.6", 0.2)])
def test_the_parts_add_up_and_a_weight_takes_what_it_should(tmp_path: Path, layout: str, each: float) -> None:
    model = trained(width=320, heads=4, hidden=640, layers=1)
    save_packed(tmp_path, pack(model, ternaries(model), layout, 8), byte_tokenizer())
    found = parts(tmp_path / MODEL)
    assert sum(part.bytes for part in found) == (tmp_path / MODEL).stat().st_size
    sizes = {part.name: part for part in found}
    matrices, table_, norms = sizes["ternary matrices"], sizes["embedding and head, 8 bits"], sizes["norms, float32"]
    assert (matrices.bytes - matrices.scales) / matrices.weights == each
    assert matrices.scales == 4 * 4  # a scale a matrix
    assert table_.bytes == 257 * 320 + 4 * 257
    assert matrices.weights + table_.weights + norms.weights == sum(p.numel() for p in model.parameters())


def test_folders_that_are_something_else_are_refused(tmp_path: Path) -> None:
    model = trained()
    packed = pack(model, ternaries(model), "ternary2", 8)
    with pytest.raises(UsageError, match="no such packed model"):
        load_packed(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no such file"):
        load_packed(tmp_path)
    export(trained(lowbit=False), None, tmp_path / "stock")
    with pytest.raises(ShoestringError, match="is not a packed model"):
        load_packed(tmp_path / "stock")
    save_packed(tmp_path / "packed", packed, byte_tokenizer())
    (tmp_path / "packed" / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        load_packed(tmp_path / "packed")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"layers": 3}, "lacks the tensor blocks.2"),
        ({"layers": 1}, "and the model has none there"),
        ({"width": 64}, "and the model has one of"),
        ({"layers": 4096}, "too few tensors"),
        ({"layers": 10**9}, "less than or equal to 4096"),
        ({"tied": False}, "lacks the tensor head.weight"),
        ({"vocabulary": 300}, "257 x 32, and the model has one of"),
        ({"context": 1 << 24}, "heads are 8 wide has a context of up to 4194304, not 16777216"),
        ({"context": 10**30}, "more than 64 bits"),
        ({"width": 1 << 20}, "too few numbers for a width of 1048576 and the vocabulary it states"),
        ({"heads": 1 << 20}, "too few numbers for a width of 32 and the heads it states"),
        ({"hidden": 1 << 24}, "too few numbers for a width of 32 and the hidden it states"),
        ({"hidden": 10**30}, "more than 64 bits"),
        ({"width": 10**400}, "more than 64 bits|describes no model"),
        ({"vocabulary": {"a\nb": 1}}, "describes no model"),
        ({"widht": 3}, "did you mean 'width'"),
        ({"vocabulary": -1}, "vocabulary"),
    ],
)
def test_a_description_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], words: str
) -> None:
    from shoestring.shrink import folder

    model, told = trained(), folder.tree
    monkeypatch.setattr(folder, "tree", lambda config: {**told(config), **changed})
    save_packed(tmp_path, pack(model, ternaries(model), "ternary2", 8), byte_tokenizer())
    with pytest.raises(ShoestringError, match=words) as refused:
        load_packed(tmp_path)
    assert "\n" not in str(refused.value)


def test_no_float_matrix_is_made_on_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    save_packed(tmp_path, pack(model, ternaries(model), "ternary2", 8), byte_tokenizer())
    made: list[torch.device] = []
    remember = nn.Linear.__init__

    def spy(self: nn.Linear, *given: object, **more: object) -> None:
        remember(self, *given, **more)  # type: ignore[arg-type]
        made.append(self.weight.device)

    monkeypatch.setattr(nn.Linear, "__init__", spy)
    found: PackedTransformer = load_packed(tmp_path).model
    assert {device.type for device in made} == {"meta"}
    assert all(isinstance(module, PackedLinear) for module in found.packed)
