"""Weights that no step changes, kept as they are multiplied."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.adapter import Adapter


class NarrowLinear(nn.Linear):
    """A frozen layer in the type that its products are computed in: the same products, of half the bytes, cast once and not each
    step. Without it each pass makes a copy of the weight in that type, and keeps it for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return F.linear(x.to(self.weight.dtype), self.weight, bias)


def narrow_frozen(model: nn.Module, dtype: torch.dtype) -> int:
    """Keep the frozen linear layers below a model's adapters in `dtype`, which `torch.autocast` multiplies them in. A checkpoint
    holds none of them, and whoever opens the run has them from its base.

    Returns: how many layers there were.
    """
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    if any(adapter.reads_base for adapter in adapters):
        return 0
    held = [id(parameter) for module in model.modules() for parameter in module._parameters.values()]
    found = 0
    for adapter in adapters:
        base = adapter.base
        alone = type(base) is nn.Linear and held.count(id(base.weight)) == 1
        if alone and not base.weight.requires_grad and base.weight.dtype == torch.float32:
            adapter.base = _narrow(base, dtype)
            found += 1
    return found


def _narrow(layer: Any, dtype: torch.dtype) -> NarrowLinear:
    made = NarrowLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    made.bias = layer.bias
    return made.train(layer.training)
