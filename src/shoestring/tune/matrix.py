"""A weight matrix with the layer that holds it: plain, transposed as GPT-2 has it, trained for few bits, packed, or adapted."""

from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract import cost

TRANSPOSED = "Conv1D"
"""The name of the class of transformers whose weight is [in, out]."""


def is_matrix(layer: nn.Module) -> bool:
    """Whether an adapter can stand in the place of a layer: it maps vectors of one size to vectors of another."""
    return (
        hasattr(layer, "in_features") and hasattr(layer, "out_features") and not hasattr(layer, "num_embeddings")
    ) or (is_transposed(layer))


def sizes(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a layer."""
    found: Any = layer
    if is_transposed(layer):
        return found.nx, found.nf
    return found.in_features, found.out_features


@torch.no_grad()
def weight_of(layer: nn.Module) -> Tensor:
    """[out, in]: the numbers that a layer multiplies by, in the type that it has them in; packed ones in float32.

    Raises: UsageError where an adapter below multiplies by no one matrix.
    """
    found: Any = layer
    if hasattr(layer, "computed_weight"):
        computed: Tensor = found.computed_weight()
        return computed
    if hasattr(layer, "quantised"):
        unpacked: Tensor = found.quantised().dequantise()
        return unpacked
    weight: Tensor = found.weight.detach()
    return weight.T if is_transposed(layer) else weight


def bias_of(layer: nn.Module) -> Tensor | None:
    """[out]; None where a layer adds nothing."""
    own: Any = getattr(layer, "computed_bias", None)
    found: Tensor | None = getattr(layer, "bias", None) if own is None else own()
    return None if found is None else found.detach()


def plain(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of this weight [out, in] and bias, of the class that a model has where `layer` and the adapters over it stand."""
    bottom: Any = layer
    while not is_transposed(bottom) and isinstance(getattr(bottom, "base", None), nn.Module):
        bottom = bottom.base
    if is_transposed(bottom):
        made: Any = type(bottom)(bottom.nf, bottom.nx).to("meta")
        weight = weight.T
        bias = bottom.bias.new_zeros(bottom.nf) if bias is None else bias
    else:
        inputs, outputs = sizes(layer)
        made = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias)
    found: nn.Module = made
    return found


def device_of(layer: nn.Module) -> torch.device:
    """Where a layer's numbers lie."""
    return next(iter(layer.state_dict(keep_vars=True).values())).device


def flops(layer: nn.Module, tokens: int, backward: bool, inputs: bool) -> int:
    """Operations of a layer on `tokens` vectors, as `contract.cost.linear` counts them."""
    if is_transposed(layer):
        products = 1 + (int(cost.trains(layer)) + int(inputs) if backward else 0)
        into, out = sizes(layer)
        return products * 2 * tokens * into * out
    return cost.linear(layer, tokens, backward, inputs)


def is_transposed(layer: object) -> bool:
    """Whether its weight is [in, out]."""
    return type(layer).__name__ == TRANSPOSED and hasattr(layer, "nf")
