"""Small models away from where they start, and text that repeats itself."""

import copy
import random

import torch
from torch import nn

from shoestring.config import build
from shoestring.contract.model import LanguageModel
from shoestring.model import ModelConfig, Transformer
from shoestring.model.wrapped import Wrapped

VOCABULARY, CONTEXT = 40, 64


def native(seed: int = 2, key_value_heads: int = 2, context: int = CONTEXT) -> Transformer:
    """A native model whose blocks add something."""
    torch.manual_seed(seed)
    shape = {"layers": 2, "width": 32, "heads": 4, "vocabulary": VOCABULARY, "context": context}
    made = Transformer(build(ModelConfig, {**shape, "key_value_heads": key_value_heads}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.requires_grad_(False).eval()


def wrapped(kind: str, **more: object) -> Wrapped:
    """A model of transformers, wrapped. kind: 'gpt2', 'gemma', 'mistral'."""
    import transformers

    torch.manual_seed(1)
    sizes = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
        "gemma": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": CONTEXT,
        },
    }
    sizes["mistral"] = {**sizes["gemma"], "sliding_window": 5}
    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, **{**sizes[kind], **more})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return Wrapped(model)


def noisy(model: LanguageModel, scale: float = 0.05, seed: int = 7) -> LanguageModel:
    """A model that often says what this one says, and not always."""
    assert isinstance(model, nn.Module)
    generator = torch.Generator().manual_seed(seed)
    made = copy.deepcopy(model)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * scale)
    assert isinstance(made, type(model))
    return made


def prompts(count: int, seed: int = 0, longest: int = 24) -> list[tuple[int, ...]]:
    """Prompts of many lengths, several of which begin alike."""
    chance = random.Random(seed)
    beginnings = [[chance.randrange(VOCABULARY) for _ in range(longest)] for _ in range(3)]
    made = []
    for _ in range(count):
        begun = chance.choice(beginnings)[: chance.randrange(longest)]
        made.append((*begun, *(chance.randrange(VOCABULARY) for _ in range(chance.randrange(1, 5)))))
    return made


def one_by_one(
    model: LanguageModel, prompt: tuple[int, ...], count: int, ends: frozenset[int] = frozenset()
) -> list[int]:
    """Greedy decoding without a cache, up to the context."""
    from shoestring.contract.batch import Inputs

    text = list(prompt)
    with torch.no_grad():
        while len(text) - len(prompt) < count and len(text) <= model.about.context:
            token = int(model.read(Inputs(torch.tensor([text]))).logits()[0, -1].argmax())
            if token in ends:
                break
            text.append(token)
    return text[len(prompt) :]
