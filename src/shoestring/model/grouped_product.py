"""Matrix products of sorted rows: each group of rows with a matrix of its own, written side by side without a copy."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def grouped_product(x: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    """y = W_e x for the rows x of group e. Under autocast, of the type that a linear layer has there.

    x: [N, in], sorted by group. weights: [E, out, in]. counts: rows of each group; they add up to N. -> [N, out].

    Each group is one product that writes into its slice of the whole, forward and backward; what has no rows takes no time. It may
    be differentiated any number of times.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weights = x.to(dtype), weights.to(dtype)
    found: Tensor = _Rows.apply(x, weights, tuple(counts))
    return found


def _groups(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    first = 0
    for number, count in enumerate(counts):
        if count:
            yield number, slice(first, first + count)
        first += count


class _Rows(torch.autograd.Function):
    """[N, in], [E, out, in] -> [N, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.counts = counts
        found = x.new_empty(len(x), weights.shape[1])
        for number, rows in _groups(counts):
            torch.mm(x[rows], weights[number].T, out=found[rows])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weights = ctx.saved_tensors
        (gradient,) = gradients
        wanted = _wanted(ctx)
        back = _Rows.apply(gradient, weights.transpose(1, 2), ctx.counts) if wanted[0] else None
        return back, _Outer.apply(gradient, x, ctx.counts) if wanted[1] else None, None


class _Outer(torch.autograd.Function):
    """sum of g x' over the rows of each group: [N, out], [N, in] -> [E, out, in]."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.counts = counts
        found = left.new_empty(len(counts), left.shape[1], right.shape[1])
        for number, rows in _groups(counts):
            torch.mm(left[rows].T, right[rows], out=found[number])
        for number, count in enumerate(counts):
            if not count:
                found[number].zero_()
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right = ctx.saved_tensors
        (gradient,) = gradients
        wanted = _wanted(ctx)
        first = _Rows.apply(right, gradient, ctx.counts) if wanted[0] else None
        return first, _Rows.apply(left, gradient.transpose(1, 2), ctx.counts) if wanted[1] else None, None


def _wanted(ctx: FunctionCtx) -> tuple[bool, ...]:
    found: tuple[bool, ...] = ctx.needs_input_grad  # type: ignore[attr-defined]
    return found
