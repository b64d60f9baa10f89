"""The products, launched: grid, memory for the sums of the splits, and what the kernels want to be told."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from shoestring.lowbit.gpu import triton_kernels
from shoestring.lowbit.gpu.config import Config, shares, token_block
from shoestring.lowbit.gpu.order import PLACES, Order
from shoestring.lowbit.packing.layout import ROWS as STRIP

COMPILED = isinstance(triton_kernels.narrow, triton.JITFunction)
"""Not under TRITON_INTERPRET=1."""

ADDED = 256
"""Rows that a program of `add_up` works on."""


@dataclass(frozen=True)
class GpuMatrix:
    """Numbers in a GPU's memory as the kernels are to read them; see `triton_kernels.narrow`."""

    words: Tensor
    scales: Tensor
    rows: int
    columns: int
    groups: int
    group: int
    runs: int
    blocks: int
    strip_stride: int
    kind: int
    places: int
    run: int
    strip: int
    factor: float

    @property
    def flush(self) -> int:
        """Places after which a group can end: a power of two that divides the runs of a group; 0 for one group."""
        return 0 if self.groups == 1 else min(self.runs & -self.runs, self.places)


def ternary(words: Tensor, scales: Tensor, order: Order) -> GpuMatrix:
    """words: as `order.reorder` makes them; scales: float32 [rows, groups]. Checked by whoever calls."""
    stride = order.blocks * STRIP * order.run
    sizes = (order.rows, order.columns, order.groups, order.group, order.runs, order.blocks)
    return GpuMatrix(words, scales, *sizes, stride, triton_kernels.TERNARY, PLACES, order.run, STRIP, 0.5)


def integers(weights: Tensor, scales: Tensor, rows: int, columns: int, bits: int) -> GpuMatrix:
    """weights: int8 [rows, columns] at 8 bits, uint8 as `packing.integer` lays them out at 4; scales: float32 [rows, 1]."""
    run, places = (64, 1) if bits == 8 else (32, 2)
    blocks = -(-columns // 64)
    kind = triton_kernels.EIGHT if bits == 8 else triton_kernels.FOUR
    sizes = (rows, columns, 1, columns, blocks * places, blocks)
    return GpuMatrix(weights.view(torch.uint8), scales, *sizes, weights.shape[1], kind, places, run, 1, 1.0)


def product(x: Tensor, matrix: GpuMatrix, config: Config) -> Tensor:
    """x [tokens, columns] of float16, bfloat16 or float32, contiguous -> [tokens, rows] of its type; nothing is checked.

    The weights are exact in 16 bits. A float32 is three bfloat16 that add up to it (to 2^-24 of it, or to 2^-133), and so
    three tokens; their float32 sums are added. Runs on the GPU, or on a CPU under Triton's interpreter.
    """
    if x.dtype != torch.float32:
        return _launched(x, matrix, config, x.dtype)
    high = x.bfloat16()
    middle = (x - high).bfloat16()
    low = (x - high - middle).bfloat16()
    sums = _launched(torch.cat([high, middle, low]), matrix, config, torch.float32)
    return sums.view(3, len(x), matrix.rows).sum(0)


def passes(x: Tensor) -> int:
    """The tokens that `product` hands to the kernels for x [tokens, columns]."""
    return len(x) * (3 if x.dtype == torch.float32 else 1)


def _launched(x: Tensor, matrix: GpuMatrix, config: Config, dtype: torch.dtype) -> Tensor:
    tokens, rows = len(x), matrix.rows
    out = x.new_empty(tokens, rows, dtype=dtype)
    size = token_block(tokens)
    share, splits = shares(matrix.blocks, config)
    sums = out if splits == 1 else x.new_empty(splits, tokens, rows, dtype=torch.float32)
    kernel = triton_kernels.narrow if config.kernel == "narrow" else triton_kernels.wide
    kernel[(-(-rows // config.rows), splits, -(-tokens // size))](
        x,
        matrix.words,
        matrix.scales,
        sums,
        tokens,
        rows,
        matrix.columns,
        matrix.groups,
        matrix.group,
        matrix.runs,
        matrix.blocks,
        share,
        matrix.strip_stride,
        KIND=matrix.kind,
        PLACES=matrix.places,
        RUN=matrix.run,
        STRIP=matrix.strip,
        FLUSH=matrix.flush,
        ROWS=config.rows,
        TOKENS=size,
        SLICES=config.slices,
        WHOLE=splits == 1,
        FACTOR=matrix.factor,
        COMPILED=COMPILED,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if splits > 1:
        triton_kernels.add_up[(tokens, -(-rows // ADDED))](
            sums, matrix.scales, out, splits, tokens, rows, SCALED=matrix.flush == 0, ROWS=ADDED
        )
    return out
