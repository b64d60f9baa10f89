"""What a model of some shape has and takes: parameters, operations and memory, without building it."""

from dataclasses import replace
from typing import Any

from shoestring.base import peek
from shoestring.contract.cost import Shape, bytes_of
from shoestring.contract.model import About, LanguageModule
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.plan import rules

RUNTIME_MEMORY = 0.6e9
"""Bytes that Python, torch and the tokens in use take before any model does."""


def _costs(model: ModelConfig) -> tuple[int, int, int]:
    """(parameters outside the blocks, parameters of a block, forward and backward operations of a block at full context),
    from a model of one block that takes no memory: the blocks are alike."""
    with outline():
        built = Transformer(replace(model, layers=1))
    block: Any = built.blocks[0]
    inside = sum(p.numel() for p in block.parameters())
    return (
        sum(p.numel() for p in built.parameters()) - inside,
        inside,
        block.flops(Shape(1, model.context, backward=True)),
    )


def _whole(model: ModelConfig, *, backward: bool = True) -> tuple[int, float]:
    """(parameters, operations per token at full context) of a model whose layers differ or are wrapped."""
    with outline():
        built = Transformer(model)
    count = sum(p.numel() for p in built.parameters())
    return count, built.cost(Shape(1, model.context, backward=backward)).flops / model.context


def _base(model: ModelConfig) -> LanguageModule:
    """The base of a run, to be looked at. Raises: UsageError for one that cannot be trained."""
    opened = peek(model.base, model.packed)
    if not isinstance(opened.model, LanguageModule):
        raise UsageError(f"{model.base} can be used, and not be trained: it is {opened.about.kind}")
    return opened.model


def parameters(model: ModelConfig) -> int:
    """Parameters of a model, embeddings included, without building it; where matrices are packed, as many as fill their bytes."""
    if model.base and model.packed:
        return bytes_of(_base(model)) // 4
    if model.base:
        return sum(p.numel() for p in _base(model).parameters())
    if not model.uniform or model.embedding is not None:
        return _whole(model)[0]
    outside, block, _ = _costs(model)
    return outside + model.layers * block


def flops_per_token(model: ModelConfig) -> float:
    """Forward and backward operations per token at full context."""
    if model.base:
        base = _base(model)
        return float(base.cost(Shape(1, model.context, backward=True)).flops / model.context)
    if not model.uniform or model.embedding is not None:
        return _whole(model)[1]
    return 6 * model.width * model.vocabulary + model.layers * _costs(model)[2] / model.context


def forward_flops_per_token(model: ModelConfig) -> float:
    """Operations per token of reading alone, at full context."""
    if model.base:
        return float(_base(model).cost(Shape(1, model.context)).flops / model.context)
    if not model.uniform or model.embedding is not None:
        return _whole(model, backward=False)[1]
    with outline():
        block: Any = Transformer(replace(model, layers=1)).blocks[0]
    return 2 * model.width * model.vocabulary + model.layers * block.flops(Shape(1, model.context)) / model.context


def training_memory(model: ModelConfig | About, count: int, tokens: int, trained: int | None = None) -> float:
    """Bytes: weights, gradients and moments in float32, activations of `tokens` read at once, and their logits.

    count: parameters. trained: of them, or beside them; None: all.
    """
    activations = tokens * model.width * model.layers * rules.ACTIVATION_FLOATS * 4
    logits = tokens * model.vocabulary * 8
    weights = 16 * count if trained is None else 4 * count + 16 * trained
    return RUNTIME_MEMORY + weights + activations + logits
