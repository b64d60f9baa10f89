"""Cutting a model along an axis: what stays computes as it did, on models of every family's shape."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.config import build
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.attention import Attention
from shoestring.model.hf import to_transformers
from shoestring.surgery.pruning import axis_of, cut, kept_count
from shoestring.surgery.resize import Cut, kept_places, resize

SIZES: dict[str, Any] = {"layers": 2, "width": 32, "vocabulary": 40, "context": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {"heads": 4, "key_value_heads": 2, "head_width": 8},
    "qwen2": {"heads": 4, "key_value_heads": 2, "token_mixer": {"name": "attention", "qk_norm": False, "bias": "qkv"}},
    "llama": {"heads": 4, "key_value_heads": 1, "tied": False, "token_mixer": {"name": "attention", "qk_norm": False}},
    "gpt_neox": {
        "heads": 4,
        "tied": False,
        "token_mixer": {"name": "attention", "qk_norm": False, "bias": "all", "rotary_share": 0.5},
        "channel_mixer": {"name": "gelu", "bias": True},
        "norm": "layernorm",
        "residual": "parallel",
    },
    "squared relu": {"heads": 2, "channel_mixer": "squared_relu"},
}


def made(shape: str) -> Transformer:
    torch.manual_seed(3)
    model = Transformer(build(ModelConfig, {**SIZES, **SHAPES[shape]}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.requires_grad_(False).eval()


def logits(model: Transformer) -> Tensor:
    found: Tensor = model(torch.arange(12)[None] % 37)
    return found


def kinds(model: Transformer) -> list[tuple[str, int | None]]:
    anatomy = model.anatomy()
    return [(kind, axis.layer) for kind in ("hidden", "key_value_head", "width") for axis in anatomy.axes(kind)]


@pytest.mark.parametrize("shape", SHAPES)
def test_another_order_changes_nothing(shape: str) -> None:
    """All indices stay, the other way round, on every axis of every layer: logits are the same."""
    model = made(shape)
    before = logits(model)
    for kind, layer in kinds(model):
        cut(model, kind, layer, list(reversed(range(axis_of(model.anatomy(), kind, layer).size))))
    assert not torch.equal(
        model.get_parameter("blocks.0.channel_mixer.output.weight"),
        made(shape).get_parameter("blocks.0.channel_mixer.output.weight"),
    )
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_that_are_written_as_nothing_can_go(shape: str) -> None:
    """Where output matrices do not read some features and heads, leaving those out changes nothing."""
    model = made(shape)
    gone = {"hidden": 3, "key_value_head": 1}
    for layer in range(2):
        for kind, count in gone.items():
            axis = axis_of(model.anatomy(), kind, layer)
            count = min(count, axis.size - 1)
            mixer = "token_mixer" if kind == "key_value_head" else "channel_mixer"
            weight = model.get_parameter(f"blocks.{layer}.{mixer}.output.weight")
            weight[:, : count * weight.shape[1] // axis.size] = 0
    before = logits(model)
    for layer in range(2):
        for kind, count in gone.items():
            size = axis_of(model.anatomy(), kind, layer).size
            cut(model, kind, layer, range(min(count, size - 1), size))
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    config, attention = model.config, model.get_submodule("blocks.0.token_mixer")
    assert isinstance(attention, Attention)
    assert (config.heads, config.key_value_heads) == (attention.heads, attention.split[1])
    assert config.hidden == model.get_parameter("blocks.0.channel_mixer.output.weight").shape[1]
    cache = model.new_cache(1, 12)
    assert cache.layers[0].shape.heads == config.key_value_heads
    # a fresh model of the configuration has the same shapes
    again = Transformer(config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(again.eval()), before, atol=1e-5, rtol=1e-5)


def test_layers_may_differ_in_size() -> None:
    model = made("qwen3")
    cut(model, "hidden", 1, range(10))
    cut(model, "key_value_head", 0, [1])
    assert not model.anatomy().uniform()
    assert logits(model).isfinite().all()
    with pytest.raises(UsageError, match="layers of this model differ in size, and no stock class holds"):
        to_transformers(model)
    assert model.cost(Shape(1, 5)).flops < made("qwen3").cost(Shape(1, 5)).flops


def test_it_works_without_values() -> None:
    with torch.device("meta"):
        model = Transformer(build(ModelConfig, {**SIZES, **SHAPES["qwen3"]}))
    cut(model, "hidden", 0, [0, 2])
    assert model.get_parameter("blocks.0.channel_mixer.gate_up.weight").shape == (4, 32)
    assert model.get_parameter("blocks.0.channel_mixer.gate_up.weight").is_meta


@pytest.mark.parametrize("keep", [[], [0, 0], [-1], [99]])
def test_indices_that_are_not_there_are_refused(keep: list[int]) -> None:
    model = made("qwen3")
    with pytest.raises(UsageError, match="of the axis 'hidden' of layer 0, numbers from 0 to"):
        resize(model, Cut(axis_of(model.anatomy(), "hidden", 0), keep))


def test_places_between_slices_stay() -> None:
    slices = Slice("w", 0, 6, 2), Slice("w", 0, 1, 1)
    one, other = Cut(Axis("hidden", 0, 2, slices[:1]), [1]), Cut(Axis("head", 0, 3, slices[1:]), [2, 0])
    assert kept_places(12, [(slices[0], one), (slices[1], other)]).tolist() == [0, 3, 1, 4, 5, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("size", "share", "multiple", "count"),
    [(96, 0.5, 8, 48), (96, 0.51, 8, 48), (3, 0.1, 1, 1), (5, 0.5, 8, 5), (20, 0.99, 8, 16), (20, 1.0, 8, 20)],
)
def test_how_many_stay(size: int, share: float, multiple: int, count: int) -> None:
    assert kept_count(size, share, multiple) == count
