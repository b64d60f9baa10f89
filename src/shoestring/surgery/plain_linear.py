"""A layer that computes as a linear one does, made into a plain one."""

from typing import Any

from torch import nn


def plain_linear(layer: Any, *, trained: bool) -> nn.Linear:
    """A plain layer with the weight, the bias and the blocks of rows of another. trained: whether the weight takes gradients."""
    made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.weight.detach(), requires_grad=trained)
    if layer.bias is not None:
        made.bias = layer.bias
    for marked in (made, made.weight):
        if hasattr(layer, "row_blocks"):
            setattr(marked, "row_blocks", layer.row_blocks)  # noqa: B010
    return made.train(layer.training)
