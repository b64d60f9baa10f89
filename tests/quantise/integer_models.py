"""Models and their integer-only counterparts, for the tests of these."""

from typing import Any

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.model import Transformer
from shoestring.model.layout import Pattern
from shoestring.quantise.integer_only.convert import integer_model
from shoestring.quantise.integer_only.model import IntegerOnlyTransformer
from tests.quantise import making


def part(name: str, kind: str, **options: Any) -> Choice:
    return Choice.of("model", name, kind=kind, **options)


EFFICIENT = part("efficient_attention", "token mixer", kernel=4)
NANO = part("nano", "embedding", rank=8)
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "embbert": {"embedding": NANO, "token_mixer": EFFICIENT, "key_value_heads": 4},
    "layernorm": {
        "norm": part("layernorm", "norm"),
        "channel_mixer": part("squared_relu", "channel mixer"),
        "tied": False,
    },
    "biased": {
        "token_mixer": part("attention", "token mixer", qk_norm=False, bias="all"),
        "channel_mixer": part("gelu", "channel mixer", bias=True),
        "input_scale": 3.0,
        "output_scale": 0.3,
    },
    "untied nano": {"embedding": NANO, "tied": False, "key_value_heads": 1},
    "mixed": {"pattern": (Pattern("1", token_mixer=EFFICIENT),), "key_value_heads": 4},
}
"""Every part that there is, in some model."""

LENGTH = 24


def made(name: str) -> tuple[Transformer, IntegerOnlyTransformer]:
    """A random model, and its counterpart."""
    model = making.native(**SHAPES[name])
    return model, integer_model(model, making.text())[0]


def ids_of(rows: int, seed: int = 3) -> Tensor:
    return torch.randint(making.VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def integers(model: IntegerOnlyTransformer, hidden: Tensor) -> Tensor:
    return model.integer_head.integers(hidden)
