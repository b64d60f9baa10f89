"""What a layer of a transformers model costs, by the modules it is made of. The convention is in `contract.cost`."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from shoestring.contract import cost
from shoestring.contract.attention_rule import AttentionSizes
from shoestring.contract.cache import KeptShape
from shoestring.contract.cost import Shape
from shoestring.errors import UsageError
from shoestring.model.wrapped_rules import rule_of


def layer_flops(layer: nn.Module, config: Any, kept: KeptShape | None, shape: Shape, inputs: bool) -> int:
    """Operations of a pass through a decoder layer; the most it can be, where some of its parts are trained and others not.

    config: of the model. kept: of a token, None for a layer without attention. inputs: whether its input takes a gradient.
    """
    back = shape.backward
    parts = list(_parts(layer))
    # which norm stands before which matrix is not known: one that is trained sends gradients through all of the layer
    known = {id(parameter) for part in parts for parameter in part.parameters()}
    inside = inputs or (back and any(p.requires_grad and id(p) not in known for p in layer.parameters()))
    rule = rule_of(layer)
    inside = inside or (back and rule is not None and cost.trains(rule))
    total = 0
    for part in parts:
        total += _products(part, config, shape.tokens, back, inside)
        inside = inside or (back and cost.trains(part))
    if kept is None:
        return total
    if rule is not None:
        sizes = AttentionSizes(config.hidden_size, config.num_attention_heads, kept.heads)
        return total + rule.attention_flops(shape, sizes, kept.key_width, kept.value_width, inside)
    square = 2 * shape.rows * config.num_attention_heads * shape.new * (shape.past + shape.new)
    key, value = kept.key_width, kept.value_width
    total += square * (key + value)
    if inside:
        again = key if config._attn_implementation == "sdpa" else 0  # the fused kernel works out the scores once more
        total += square * (2 * key + 2 * value + again)
    return total


def refuse_unknown(model: nn.Module, layers: Sequence[nn.Module], config: Any) -> None:
    """Raises: UsageError for a matrix in a layer, or beside the layers, whose operations are not known."""
    inside = {id(p) for layer in layers for part in _parts(layer) for p in part.parameters()}
    for name, parameter in model.named_parameters():
        holder = model.get_submodule(name.rpartition(".")[0])
        head = holder is model.get_output_embeddings()  # type: ignore[operator]
        if parameter.ndim < 2 or id(parameter) in inside or isinstance(holder, nn.Embedding) or head:
            continue
        raise UsageError(f"what the product with '{name}' of this {config.model_type} model costs is not known")
    for layer in layers:
        for part in _parts(layer):
            _products(part, config, 1, False, False)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that multiply with a matrix of theirs, in the order of the tree."""
    counted = hasattr(type(module), "flops") or hasattr(module, "in_features")
    if counted or any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
        if not isinstance(module, nn.Embedding):
            yield module
        return
    for child in module.children():
        yield from _parts(child)


def _products(part: nn.Module, config: Any, tokens: int, back: bool, inputs: bool) -> int:
    """Operations of one such module on so many tokens."""
    if hasattr(type(part), "flops") or hasattr(part, "in_features"):
        return cost.linear(part, tokens, back, inputs)
    products = 1 + (int(cost.trains(part)) + int(inputs) if back else 0)
    total = 0
    for name, weight in part.named_parameters():
        if weight.ndim == 2:  # Conv1D of GPT-2, and the routers of mixtures
            total += weight.numel()
        elif weight.ndim == 3 and hasattr(config, "num_experts_per_tok"):  # stacked experts, some of which take a token
            total += config.num_experts_per_tok * weight[0].numel()
        elif weight.ndim > 1:
            raise UsageError(
                f"what a {type(part).__name__} of this {config.model_type} model costs is not known ('{name}')"
            )
    return products * 2 * tokens * total
