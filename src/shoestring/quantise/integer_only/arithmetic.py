"""Fixed-point arithmetic on integer tensors: products, rounding shifts, requantisation, inverse square root, exponential."""

import functools
import logging
import math

import torch
from torch import Tensor

from shoestring.errors import ShoestringError

log = logging.getLogger(__name__)

STREAM_BITS = 23
"""Of the residual stream: as many as a norm can square and add up in 64."""

TYPES = {8: torch.int8, 16: torch.int16, STREAM_BITS: torch.int32, 32: torch.int32}
"""Of integers of so many bits, the sign among them."""

MULTIPLIER_BITS = 31
"""Of the largest multiplier of a set, its sign among them not."""

FAR = 62
"""The longest shift of a product of an accumulator and a multiplier."""


@functools.cache
def _fast_products() -> bool:
    """Whether torch's product of int8 matrices is exact on this machine: kernels for processors without such instructions may
    saturate sums of two products in 16 bits."""
    for rows in (1, 2, 16, 64):
        for one in (-127, 127):
            left = torch.full((rows, 64), one, dtype=torch.int8)
            right = torch.full((48, 64), 127, dtype=torch.int8)
            if not bool((torch._int_mm(left, right.t()) == 64 * 127 * one).all()):
                log.warning("torch multiplies int8 inexactly on this processor: it is done in 32 bits, which is slow")
                return False
    return True


def product(left: Tensor, right: Tensor) -> Tensor:
    """int32 [n, m]: left [n, k] times right [m, k] transposed, both int8, without an overflow where k is below 2^17.

    On machines where torch's product of int8 is not exact both are widened to int32, which is slow.
    """
    if _fast_products():
        return torch._int_mm(left, right.t())
    return left.to(torch.int32) @ right.to(torch.int32).t()


def fixed_point(factors: Tensor) -> tuple[Tensor, int]:
    """(multipliers int32 of the shape of `factors`, shift): factors are near multipliers / 2^shift.

    The shift is one for all: the largest factor has a multiplier of 31 bits. A factor of 0 has the multiplier 0.
    factors: at least 0. Raises: ShoestringError for one that is not finite, or 2^30 and more.
    """
    factors = factors.double()
    most = float(factors.max())
    if not math.isfinite(most) or float(factors.min()) < 0 or most >= 2.0**30:
        raise ShoestringError(f"a factor of {most:g} has no fixed-point multiplier")
    shift = FAR if most == 0 else min(FAR, MULTIPLIER_BITS - math.frexp(most)[1])
    whole = (factors * 2.0**shift).round().clamp(max=2.0**31 - 1)
    return whole.to(torch.int32), shift


def rounded_shift(values: Tensor, shift: Tensor | int) -> Tensor:
    """values / 2^shift, to the nearest integer, halves up. values: of an integer type, written over. shift: 1 or more."""
    return values.bitwise_right_shift_(shift - 1).add_(1).bitwise_right_shift_(1)


def saturated(values: Tensor, bits: int) -> Tensor:
    """values, written over, within +-(2^(bits - 1) - 1), in the type of so many bits."""
    most = (1 << (bits - 1)) - 1
    return values.clamp_(-most, most).to(TYPES[bits])


def requantise(values: Tensor, multiplier: Tensor, shift: Tensor | int, bits: int) -> Tensor:
    """values x multiplier / 2^shift to the nearest integer, saturated to `bits` bits.

    Jacob et al. (2018), arXiv:1712.05877, section 2.2: the ratio of scales is a multiplier of 31 bits and a right shift.
    Different from the paper: one 64-bit product and one rounding, where gemmlowp rounds twice; halves go up.

    values: int32 or less, in magnitude below 2^31. multiplier: int32, which broadcasts to it.
    """
    wide = values.to(torch.int64).mul_(multiplier)
    return saturated(rounded_shift(wide, shift), bits)


ROOT_BITS = 61
"""`inverse_root` gives 2^61 over a root of 30 bits."""


def inverse_root(values: Tensor) -> tuple[Tensor, Tensor]:
    """(r, e), int64 of the shape of `values`: 1 / sqrt(v) is near r / 2^(61 - e), by integers alone.

    As I-BERT (Kim et al., 2021, arXiv:2101.01321, algorithm 4) the root is found by Newton's iteration on integers,
    y = floor((y + floor(v / y)) / 2). Different from the paper: v is first shifted to 59 or 60 bits, so that five iterations from
    2^30 are enough for any v. Relative error below 2^-27.

    values: int64, 1 to 2^60 - 1.
    """
    v, e = values.clone(), torch.zeros_like(values)
    for step in (16, 8, 4, 2, 1):
        small = (v < 1 << (60 - 2 * step)).to(torch.int64)
        v, e = v << small * (2 * step), e + small * step
    y = torch.full_like(v, 1 << 30)
    for _ in range(5):
        y = (y + v // y) >> 1
    return (1 << ROOT_BITS) // y, e


LOG_BITS = 16
"""Bits behind the point of a logarithm to the base of 2, as `exponential` takes it."""

WEIGHT_BITS = 14
"""Of a result of `exponential`: two times 7, for two products of int8."""

A, B, C = 0.3585, 1.353, 0.344
"""exp(p) is near A (p + B)^2 + C for p from -ln 2 to 0: the polynomial of I-BERT."""

_A = round(A * math.log(2) ** 2 * (1 << LOG_BITS))
_B = round(B / math.log(2) * (1 << LOG_BITS))
_C = round(C * (1 << 30))


def exponential(down: Tensor) -> Tensor:
    """int64, 0 to 2^14 - 1: near 2^14 x 2^(-down / 2^16), by integers alone.

    I-BERT's i-exp (arXiv:2101.01321, algorithm 2): a whole part, which is a shift, and a rest in (-ln 2, 0], for which a polynomial
    of second degree stands. Different from the paper: the exponent is counted in powers of 2, so that the whole part takes no
    division; the result is rounded to 14 bits. Error below 0.0025.

    down: int64, at least 0: how far the exponent lies below the largest, base 2, in 2^-16.
    """
    down = down.clamp(max=WEIGHT_BITS + 2 << LOG_BITS)
    whole = down >> LOG_BITS
    rest = _B - (down & ((1 << LOG_BITS) - 1))
    found = ((rest * rest) >> LOG_BITS).mul_(_A).bitwise_right_shift_(2).add_(_C)
    return rounded_shift(found, whole + (30 - WEIGHT_BITS)).clamp_(max=(1 << WEIGHT_BITS) - 1)
