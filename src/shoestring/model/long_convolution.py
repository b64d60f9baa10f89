"""Causal convolutions as long as the text, by the fast Fourier transform or by a few small matrix products.

FlashFFTConv, arXiv:2311.05908: a transform of n = n1 n2 numbers is a product with a matrix of n1 x n1, factors of one number each,
and a product with one of n2 x n2 (Monarch, or a Butterfly of two steps: Simple Hardware-Efficient Long Convolutions,
arXiv:2302.06646). What is known to be zero is left out of the products: the second half of a text that was filled up, the taps that
a kernel has not (partial convolutions), the half of a real text's spectrum that mirrors the other, and frequencies that a kernel is
told to do without (frequency-sparse convolutions). Not here: fusing the steps in one kernel, and learnt Butterfly coefficients.
"""

import math
import time
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shoestring.errors import UsageError

Way = Literal["fft", "monarch"]
WAYS: tuple[Way, ...] = ("fft", "monarch")


def long_convolution(u: Tensor, kernel: Tensor, by: Way, frequencies: float = 1.0) -> Tensor:
    """y [B, D, T], y_t = sum_j kernel[:, j] u_{t - j}. u: [B, D, T]. kernel: [D, N], of which at most T taps are read.

    by: 'fft', torch's transforms; 'monarch', matrix products.
    frequencies: share of the kernel's frequencies that is kept, the lowest; of 'monarch'. Below 1 the products of the others are
        left out; the kernel then reaches around the text's end, so that a token sees later ones: not for language models.
    Raises: UsageError for a share below 1 of 'fft'.
    """
    if frequencies < 1 and by != "monarch":
        raise UsageError("frequencies can be left out of matrix products alone: convolve by 'monarch'")
    length = u.shape[-1]
    kernel = kernel[:, :length]
    size = length + kernel.shape[1] - 1
    wide = torch.promote_types(u.dtype, torch.float32)  # transforms know no half precision
    given, taps = u.to(wide), kernel.to(wide)
    if by == "fft":
        found = torch.fft.irfft(torch.fft.rfft(given, size) * torch.fft.rfft(taps, size), size)[..., :length]
    else:
        tables = _tables(*monarch_sizes(size), frequencies, wide, u.device)
        (a, b), (c, d) = _spectrum(given, tables), _spectrum(taps, tables)
        found = _back(a * c - b * d, a * d + b * c, tables, length)
    return found.to(u.dtype)


def monarch_sizes(size: int) -> tuple[int, int]:
    """(n1, n2), of which the product is `size` or a little more."""
    second = 1 << max(0, math.ceil(math.log2(size) / 2))
    return -(-size // second), second


class Tables(NamedTuple):
    """Matrices of a transform of n1 n2 numbers, each as real and imaginary part.

    first: [h, n1], of the h = n1 / 2 + 1 rows that are no mirrors. turn: [h, n2]. second: [n2, c], of the columns that are kept.
    weights: [h], how often a row counts on the way back, over n1 n2.
    """

    first: tuple[Tensor, Tensor]
    turn: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    weights: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _tables(n1: int, n2: int, frequencies: float, dtype: torch.dtype, device: torch.device) -> Tables:
    half, columns = n1 // 2 + 1, _columns(n2, frequencies)
    rows, at1, at2 = torch.arange(half), torch.arange(n1), torch.arange(n2)

    def waves(turns: Tensor) -> tuple[Tensor, Tensor]:
        angles = -2 * math.pi * turns
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    first = waves((torch.outer(rows, at1) % n1).double() / n1)
    second = waves((torch.outer(at2, torch.tensor(columns)) % n2).double() / n2)
    weights = torch.full((half,), 2.0, dtype=torch.float64)
    weights[0] = 1
    if n1 % 2 == 0:
        weights[-1] = 1
    return Tables(
        first, waves(torch.outer(rows, at2).double() / (n1 * n2)), second, (weights / (n1 * n2)).to(device, dtype)
    )


def _columns(n2: int, frequencies: float) -> list[int]:
    """The columns that are kept: the low frequencies are at both ends."""
    each = min(n2, max(1, round(frequencies * n2)))
    return list(range(-(-each // 2))) + list(range(n2 - each // 2, n2))


def _spectrum(x: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """The transform of x [..., T], filled up with zeros: real and imaginary part [..., h, c]."""
    n2 = tables.turn[0].shape[1]
    rows = -(-x.shape[-1] // n2)  # the other rows are zeros
    x = torch.nn.functional.pad(x, (0, rows * n2 - x.shape[-1])).unflatten(-1, (rows, n2))
    real, imaginary = (table[:, :rows] @ x for table in tables.first)
    cos, sin = tables.turn
    real, imaginary = real * cos - imaginary * sin, real * sin + imaginary * cos
    cos, sin = tables.second
    return real @ cos - imaginary @ sin, real @ sin + imaginary @ cos


def _back(real: Tensor, imaginary: Tensor, tables: Tables, length: int) -> Tensor:
    """The first numbers, [..., length], of which this is the transform."""
    n2 = tables.turn[0].shape[1]
    rows = -(-length // n2)
    cos, sin = (table.T for table in tables.second)
    real, imaginary = real @ cos + imaginary @ sin, imaginary @ cos - real @ sin
    cos, sin = tables.turn
    real, imaginary = real * cos + imaginary * sin, imaginary * cos - real * sin
    cos, sin = (table[:, :rows].T * tables.weights for table in tables.first)
    return (cos @ real + sin @ imaginary).flatten(-2)[..., :length]


def long_convolution_flops(
    by: Way, rows: int, width: int, length: int, taps: int, backward: tuple[bool, bool], frequencies: float = 1.0
) -> int:
    """Operations of `long_convolution`. A transform of n real numbers by 'fft' counts as 2.5 n log2 n, of complex ones 5 n log2 n.

    backward: whether u, and whether the kernel, takes a gradient.
    """
    taps, (of_u, of_kernel) = min(taps, length), backward
    size = length + taps - 1
    texts = rows * width
    back = of_u or of_kernel
    if by == "fft":
        each = 2.5 * size * math.log2(size)
        return round(each * (texts * (2 + 2 * of_u + back) + width * (1 + 2 * of_kernel)))
    n1, n2 = monarch_sizes(size)
    half, columns = n1 // 2 + 1, len(_columns(n2, frequencies))

    def once(length: int) -> int:
        return 4 * half * n2 * (-(-length // n2) + 2 * columns)

    return texts * once(length) * (2 + of_u + back) + width * once(taps) * (1 + of_kernel)


def fastest(rows: int, width: int, length: int, taps: int, dtype: torch.dtype, device: torch.device | str) -> Way:
    """The way that took least time here, forward and back, on random numbers of these sizes: the best of three rounds.

    To be asked once, and written in a recipe: ways differ in their last bits, so that a run must go on with its own.
    """
    u = torch.randn(rows, width, length, dtype=dtype, device=device, requires_grad=True)
    kernel = torch.randn(width, taps, dtype=dtype, device=device, requires_grad=True)

    def seconds(by: Way) -> float:
        found = []
        for _ in range(4):  # the first warms up
            start = time.perf_counter()
            long_convolution(u, kernel, by).sum().backward()
            if u.is_cuda:
                torch.cuda.synchronize(u.device)
            found.append(time.perf_counter() - start)
        return min(found[1:])

    return min(WAYS, key=seconds)
