"""Models that layouts divide: native ones, bridged, wrapped, with experts and with edits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from shoestring.base import open_model
from shoestring.config import Choice, build
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.train.edits import apply_edits

VOCABULARY = 32
SIZES = {"layers": 2, "width": 16, "heads": 4, "context": 16, "vocabulary": VOCABULARY}


def native() -> LanguageModule:
    torch.manual_seed(0)
    return Transformer(build(ModelConfig, SIZES))


def experts(router: dict[str, Any], dtype: torch.dtype = torch.float32, **options: Any) -> LanguageModule:
    """With four experts a layer, of random weights: what writes to the stream is at zero else, and the experts alike."""
    torch.manual_seed(0)
    mixer = {"name": "moe", "experts": 4, "router": router, **options}
    model = Transformer(build(ModelConfig, {**SIZES, "channel_mixer": mixer})).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("output.weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def grouped() -> LanguageModule:
    """Of two query heads a key head, in float64, with random weights."""
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, {**SIZES, "key_value_heads": 2})).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def biased() -> LanguageModule:
    """With a bias in every layer of its attention."""
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, {**SIZES, "token_mixer": {"name": "attention", "bias": "all"}}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def edited(engine: str, name: str, **options: Any) -> LanguageModule:
    """With an edit."""
    choice = Choice.of(engine, name, kind="edit", **options)
    model, _ = apply_edits(native(), [choice], Evidence(), None)
    for key, parameter in model.named_parameters():
        if key.endswith("up"):  # of an adapter, which begins as nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def every_model(folder: Path) -> dict[str, Callable[[], LanguageModule]]:
    """What makes a model of each kind, the same each time."""
    llama = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    gpt2 = GPT2Config(vocab_size=VOCABULARY, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes)

    def opened(name: str) -> LanguageModule:
        model = open_model(str(folder / name), torch.float32).model
        assert isinstance(model, LanguageModule)
        assert isinstance(model, Transformer) == (name == "bridged")
        return model.requires_grad_(True).train()

    for name, stock in (("bridged", LlamaForCausalLM(llama)), ("wrapped", GPT2LMHeadModel(gpt2))):
        stock.save_pretrained(folder / name)
        opened(name)
    made: dict[str, Callable[[], LanguageModule]] = {"native": native, "biased": biased}
    made |= {name: partial(opened, name) for name in ("bridged", "wrapped")}
    made |= {"adapted": partial(edited, "tune", "lora", rank=2), "ternary": partial(edited, "lowbit", "ternary")}
    made |= {"cut": partial(edited, "surgery", "drop_layers", count=1)}
    made |= {"ladder": partial(edited, "surgery", "ladder", at="0:")}
    routers = {
        "expert_choice": {"name": "expert_choice"},
        "soft": {"name": "soft"},
        "one_router": {"name": "pre_gate"},
        "experts": {"name": "token_choice", "scope": "workers"},
    }
    made |= {name: partial(experts, router) for name, router in routers.items()}
    made["exact_experts"] = partial(experts, {"name": "token_choice", "balance": 0.0, "z": 0.0}, torch.float64)
    made["exact_grouped"] = grouped
    made["sinkhorn"] = partial(experts, {"name": "sinkhorn"}, shared=1)
    return made
