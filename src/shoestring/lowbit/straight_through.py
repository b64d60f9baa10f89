"""Gradients through products with packed matrices, for what is trained around them.

As QLoRA has it (Dettmers et al. (2023), QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314): the frozen matrix stays
in few bits, and is in plain numbers only while a gradient passes through. There a matrix is widened as a whole, and multiplied in
bfloat16 both ways; here a slab of rows is, backwards alone, and forwards the kernels multiply what is packed, with inputs rounded
to eight bits. Its number format NF4, scales that are quantised too, and paged states of the optimiser are not here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SLAB = 1024
"""Rows of a packed matrix that are in plain numbers at once, in a backward pass. A multiple of the 16 rows of packed blocks."""

Rows = Callable[[int, int], Tensor]
"""(first, last) to the rows of a matrix from the first on and before the last. first: a multiple of `SLAB`."""


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Callable[[Tensor], Tensor], some: Rows, rows: int) -> Tensor:
        ctx.some, ctx.rows, ctx.columns = some, rows, x.shape[-1]
        return compute(x.detach())

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        found = outer.new_zeros(*outer.shape[:-1], ctx.columns)
        flat, total = outer.reshape(-1, ctx.rows), found.view(-1, ctx.columns)
        for first in range(0, ctx.rows, SLAB):
            last = min(first + SLAB, ctx.rows)
            total.addmm_(flat[:, first:last], ctx.some(first, last).to(outer.dtype))
        return found, None, None, None


def straight_through(x: Tensor, compute: Callable[[Tensor], Tensor], some: Rows, rows: int) -> Tensor:
    """compute(x) [..., rows], whose gradient is that of x W^T: a rounding of x counts as none, and W takes no gradient.

    In the backward pass no more of W than `SLAB` of its rows is in memory in plain numbers, and nothing is kept for it but what is
    packed.

    x: [..., columns].
    compute: the product.
    some: gives rows of the numbers W [rows, columns] that it multiplies by.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _Product.apply(x, compute, some, rows)
        return found
    return compute(x)
