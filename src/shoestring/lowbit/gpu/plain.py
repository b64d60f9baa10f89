"""The products on a GPU in plain torch: for many tokens, where taking the matrix apart once pays, and where Triton is absent."""

import torch
from torch import Tensor

from shoestring.lowbit.gpu.order import Order, doubled
from shoestring.lowbit.packing import integer
from shoestring.lowbit.packing.layout import ROWS as STRIP

ROOM = 1 << 26
"""Numbers of the matrix that are taken apart at once."""


def ternary(x: Tensor, words: Tensor, scales: Tensor, order: Order) -> Tensor:
    """x [tokens, columns] of float16, bfloat16 or float32, times the matrix -> [tokens, rows] of its type.

    The weights are exact in the type of x; sums are float32, rounded once after the scale.
    """
    out = x.new_empty(len(x), order.rows)
    slab = max(STRIP, ROOM // max(order.columns, 1) // STRIP * STRIP)
    half = torch.float16 if x.dtype == torch.float32 else x.dtype
    for first in range(0, order.rows, slab):
        last = min(first + slab, order.rows)
        part = words[first // STRIP : -(-last // STRIP)]
        matrix = doubled(part, order, half)[: last - first]
        out[:, first:last] = _scaled(x, matrix, scales[first:last], order)
    return out


def integers(x: Tensor, weights: Tensor, scales: Tensor, columns: int, bits: int) -> Tensor:
    """x [tokens, columns] times an integer matrix with one scale a row, as `kernels.int_matmul` takes it."""
    out = x.new_empty(len(x), len(weights))
    slab = max(1, ROOM // max(columns, 1))
    for first in range(0, len(weights), slab):
        part = weights[first : first + slab]
        whole = part if bits == 8 else integer.spread(part)[:, :columns]
        sums = product(x, whole.to(x.dtype)) * scales[first : first + slab, 0]
        out[:, first : first + slab] = sums.to(x.dtype)
    return out


def _scaled(x: Tensor, matrix: Tensor, scales: Tensor, order: Order) -> Tensor:
    """The products with twice the trits, halved and scaled."""
    if order.groups == 1:
        sums = product(x, matrix.to(x.dtype)) * 0.5 * scales[:, 0]
    else:
        groups = x.float().view(len(x), order.groups, order.group).transpose(0, 1)
        weights = matrix.float().view(len(matrix), order.groups, order.group).permute(1, 2, 0)
        sums = ((groups @ weights) * scales.t()[:, None]).sum(0) * 0.5
    return sums.to(x.dtype)


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix.T as float32 sums, which in float16 could leave its range before they are scaled."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, matrix.t(), out_dtype=torch.float32)
    return x.float() @ matrix.float().t()
