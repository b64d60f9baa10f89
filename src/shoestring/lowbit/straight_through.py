"""Gradients through products with packed matrices, for what is trained around them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Callable[[Tensor], Tensor], weight: Callable[[], Tensor]) -> Tensor:
        ctx.weight = weight
        return compute(x.detach())

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        return outer @ ctx.weight().to(outer.dtype), None, None


def straight_through(x: Tensor, compute: Callable[[Tensor], Tensor], weight: Callable[[], Tensor]) -> Tensor:
    """compute(x) [..., out], whose gradient is that of x W^T: a rounding of x counts as none, and W takes no gradient.

    x: [..., in].
    compute: the product.
    weight: gives the numbers W [out, in] that it multiplies by; asked in the backward pass, and let go of after it.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _Product.apply(x, compute, weight)
        return found
    return compute(x)
