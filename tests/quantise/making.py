"""Small models and text for the tests of quantisation."""

import copy
from typing import Any

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.model import LanguageModule
from shoestring.model import ModelConfig, Transformer
from shoestring.model.layout import Pattern
from shoestring.model.wrapped import Wrapped
from shoestring.quantise.engine import Recipe
from shoestring.quantise.format import CodeFormat

VOCABULARY = 50


def native(*, tied: bool = True, **more: Any) -> Transformer:
    """A random native model of the parts of Llama, in evaluation mode."""
    sizes: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "key_value_heads": 2, "context": 24, **more}
    return _filled(Transformer(ModelConfig(vocabulary=VOCABULARY, tied=tied, **sizes)))  # type: ignore[return-value]


def wrapped(kind: str = "gemma2") -> Wrapped:
    """A random model of transformers' own code: Gemma 2, or GPT-2 whose matrices are [in, out]."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24, "sliding_window": 8}
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
    config = AutoConfig.for_model(kind, **(gpt2 if kind == "gpt2" else {**sizes, **heads}))
    return _filled(Wrapped(AutoModelForCausalLM.from_config(config, attn_implementation="eager")))  # type: ignore[return-value]


def _filled(model: LanguageModule) -> LanguageModule:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.eval()


def model_named(name: str) -> LanguageModule:
    """'native', 'untied', 'hybrid' of layers with a running state and one that attends, or the type of a wrapped model."""
    if name == "hybrid":
        kinds = [Choice.of("model", kind, kind="token mixer") for kind in ("lightning", "mamba2", "attention")]
        pattern = tuple(Pattern(str(number), token_mixer=kind) for number, kind in enumerate(kinds))
        return native(layers=3, key_value_heads=4, pattern=pattern)
    return native(tied=name == "native") if name in ("native", "untied") else wrapped(name)


def recipe(
    form: CodeFormat, solver: str = "rtn", transform: str = "none", bits: str = "uniform", **more: Any
) -> Recipe:
    """A recipe of parts by their names."""
    names = {"solver": solver, "transform": transform, "bits": bits}
    parts = {kind: Choice.of("quantise", name, kind=kind).build() for kind, name in names.items()}
    return Recipe(form, **parts, **more)


def text(rows: int = 6, length: int = 24) -> tuple[Batch, ...]:
    """Two batches of random tokens."""
    ids = torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(2))
    return tuple(Batch(Inputs(part), part) for part in ids.split(rows // 2))


@torch.no_grad()
def logits(model: LanguageModule) -> Tensor:
    ids = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))
    return model.read(Inputs(ids)).logits()


def copied(model: LanguageModule) -> LanguageModule:
    return copy.deepcopy(model)
