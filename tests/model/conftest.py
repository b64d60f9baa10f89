"""The shapes of model that every test of this folder is driven through."""

import pytest
import torch

from shoestring.config import build
from shoestring.model import ModelConfig, Transformer

BASE = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 50, "context": 48}
SHAPES = {
    "plain": {},
    "untied": {"tied": False},
    "grouped": {"key_value_heads": 2, "tied": False},
    "multi-query": {"key_value_heads": 1},
    "wide heads": {"head_width": 16, "key_value_heads": 2},
    "no query-key norm": {"token_mixer": {"name": "attention", "qk_norm": False}, "key_value_heads": 2},
    "other constants": {
        "token_mixer": {"name": "attention", "rope_theta": 5e5, "epsilon": 1e-5},
        "norm": {"name": "rmsnorm", "epsilon": 1e-5},
    },
    "biases on queries, keys and values": {"token_mixer": {"name": "attention", "bias": "qkv", "qk_norm": False}},
    "GPT-NeoX": {
        "token_mixer": {"name": "attention", "bias": "all", "qk_norm": False, "rotary_share": 0.5},
        "channel_mixer": {"name": "gelu", "bias": True},
        "norm": "layernorm",
        "residual": "parallel",
        "tied": False,
    },
    "scaled positions": {
        "token_mixer": {
            "name": "attention",
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        "channel_mixer": {"name": "gelu", "approximate": "tanh"},
    },
    "squared ReLU": {"channel_mixer": "squared_relu", "tied": False, "head_width": 6},
}


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return build(ModelConfig, {**BASE, **request.param})


@pytest.fixture
def model(config: ModelConfig) -> Transformer:
    """A model of each shape, away from its start: a gain or a block in the wrong place shows."""
    torch.manual_seed(1)
    made = Transformer(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return made
