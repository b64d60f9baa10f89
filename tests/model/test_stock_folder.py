"""The folders that are written for transformers, against those that transformers writes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.config import build
from shoestring.model import ModelConfig, Transformer
from shoestring.model.bridge.family import families
from shoestring.model.hf import export, to_transformers

SMALL = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 50, "context": 48}


def attention(**options: Any) -> dict[str, Any]:
    return {"token_mixer": {"name": "attention", **options}}


NEOX = {"norm": "layernorm", "channel_mixer": {"name": "gelu", "bias": True}}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3, scaled and not tied": {"tied": False, "input_scale": 2.0, "output_scale": 0.5, "key_value_heads": 2},
    "qwen3, other heads": {"head_width": 6, "norm": {"name": "rmsnorm", "epsilon": 1e-6}, "hidden": 40},
    "qwen3, long": attention(
        rope_theta=5e5, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}
    ),
    "llama": attention(qk_norm=False),
    "llama, biases": {**attention(qk_norm=False, bias="all"), "tied": False},
    "llama, long": attention(
        qk_norm=False,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 24,
        },
    ),
    "llama, linear": attention(qk_norm=False, rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "mistral": {**attention(qk_norm=False), "width": 34, "heads": 4, "head_width": 8, "key_value_heads": 2},
    "qwen2": attention(qk_norm=False, bias="qkv"),
    "qwen2, not tied": {**attention(qk_norm=False, bias="qkv"), "tied": False, "key_value_heads": 1},
    "gpt_neox": {**NEOX, **attention(qk_norm=False, bias="all", rotary_share=0.5), "residual": "parallel"},
    "gpt_neox, tanh, not tied": {
        **attention(qk_norm=False),
        "norm": "layernorm",
        "channel_mixer": {"name": "gelu", "bias": True, "approximate": "tanh"},
        "tied": False,
    },
}


def test_every_family_is_here() -> None:
    assert {name.split(",")[0] for name in MODELS} == {family.model_type for family in families()}


@pytest.mark.parametrize("end", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_folder_is_that_of_transformers_byte_for_byte(
    name: str, dtype: torch.dtype, end: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, {**SMALL, **MODELS[name]}))
    stock = to_transformers(model).to(dtype)
    assert stock.config.model_type == name.split(",")[0]
    stock.config.eos_token_id = stock.generation_config.eos_token_id = stock.generation_config.pad_token_id = end
    stock.save_pretrained(tmp_path / "theirs")
    export(model, None, tmp_path / "ours", dtype, end=end)
    files = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == files
