"""The products in plain torch: the slow reference, and what is used where the native library is absent."""

import torch
from torch import Tensor

from shoestring.lowbit.activations import LARGEST, quantise_tokens
from shoestring.lowbit.packing import grouped, integer
from shoestring.lowbit.packing.layout import ROWS, Layout
from shoestring.lowbit.packing.ternary import spread

EXACT = 2**24
"""Up to here float32 holds every integer, so that a float32 product of integers is exact in whatever order it adds."""

SLAB = 64 * ROWS
"""Rows that are unpacked at once."""


def ternary_matmul(x: Tensor, packed: Tensor, scales: Tensor, rows: int, columns: int, layout: Layout) -> Tensor:
    """See `kernels.matmul`; the arguments are checked there."""
    codes, token_scale = quantise_tokens(x)
    out = x.new_empty(x.shape[0], rows)
    groups = scales.shape[1]
    width = columns // groups
    across = layout.bytes(ROWS, columns)
    for first in range(0, rows, SLAB):
        last = min(first + SLAB, rows)
        trits = (
            spread(packed[first // ROWS * across : -(-last // ROWS) * across], last - first, columns, layout).to(
                torch.int8
            )
            - 1
        )
        total = x.new_zeros(x.shape[0], last - first)
        for group in range(groups):
            run = slice(group * width, (group + 1) * width)
            dots = exact_dots(codes[:, run], trits[: last - first, run], 2)
            total = fused_multiply_add(dots.float(), scales[first:last, group], total)
        out[:, first:last] = total * token_scale
    return out


def integer_matmul(x: Tensor, weights: Tensor, scales: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """See `kernels.int_matmul`; the arguments are checked there."""
    codes, token_scale = quantise_tokens(x)
    whole = weights if bits == 8 else integer.spread(weights)[:, :columns]
    return (exact_dots(codes, whole, 128).float() * scales[:, 0] + 0.0) * token_scale


def grouped_matmul(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """See `kernels.grouped_matmul`; the arguments are checked there."""
    groups = grouped.groups_of(columns)
    filled = x.new_zeros(x.shape[0], groups * grouped.GROUP)
    filled[:, :columns] = x
    codes, scales = quantise_tokens(filled.view(x.shape[0], groups, grouped.GROUP))
    scales = torch.where(scales.isfinite(), scales, torch.nan)[..., 0]
    codes = torch.where(scales.isfinite()[..., None], codes, 0)
    offsets = scales * codes.sum(-1).float()
    out = x.new_empty(x.shape[0], rows)
    for first in range(0, rows, SLAB):
        which = torch.arange(first, min(first + SLAB, rows))
        matrix = grouped.some_rows(packed, which, rows, columns, bits)
        weights = matrix.codes.view(len(which), groups, grouped.GROUP).float()
        dots = torch.einsum("tgc,rgc->gtr", codes.float(), weights)  # exact: integers below 2^24
        total = x.new_zeros(x.shape[0], len(which))
        for group in range(groups):
            by = matrix.scales[:, group].float() * scales[:, group, None]
            total = fused_multiply_add(dots[group], by, total)
            if matrix.minimums is not None:
                low = matrix.minimums[:, group].float().expand_as(total)
                total = fused_multiply_add(low, offsets[:, group, None].expand_as(total), total)
        out[:, first : first + len(which)] = total
    return out


def exact_dots(codes: Tensor, weights: Tensor, largest: int) -> Tensor:
    """int8 [tokens, columns] times int8 [rows, columns] of at most `largest` in absolute value -> int32 [tokens, rows]."""
    slab = EXACT // (LARGEST * largest)
    dots = torch.zeros(codes.shape[0], weights.shape[0], dtype=torch.int32)
    for first in range(0, codes.shape[1], slab):
        run = slice(first, first + slab)
        dots += (codes[:, run].float() @ weights[:, run].float().t()).to(torch.int32)
    return dots


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c rounded once to float32, of float32 tensors.

    The product is exact in float64; the sum is rounded there to odd (Boldo and Melquiond (2008), Emulation of FMA and
    correctly rounded sums: proved algorithms using rounding to odd, IEEE Transactions on Computers 57(4)), after which
    rounding to float32 is that of the exact value. The error of the sum is Knuth's TwoSum.
    """
    product, c = a.double() * b.double(), c.double()
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(torch.int64)
    inexact = (error != 0) & total.isfinite() & (bits & 1 == 0)
    away = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(inexact, bits + away, bits).view(torch.float64).float()
