"""The products in plain torch: the slow reference, and what is used where the native library is absent."""

import torch
from torch import Tensor

from shoestring.lowbit.activations import LARGEST, quantise_tokens
from shoestring.lowbit.packing import integer
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
