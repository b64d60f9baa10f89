"""Codes and scales as the blocks of GGUF's Q8_0, Q4_0 and Q4_K, byte by byte: nothing is rounded.

Layouts: ggml's block_q8_0, block_q4_0 and block_q4_K (llama.cpp, ggml/src/ggml-common.h), which the tests read with the `gguf`
package.
"""

import torch
from torch import Tensor

from shoestring.errors import ShoestringError

WIDE = 32
"""Columns of a block of Q8_0 and Q4_0."""

LONG = 256
"""Columns of a block of Q4_K."""


def q8_0(codes: Tensor, scales: Tensor) -> Tensor:
    """uint8 [rows, 34 blocks]: a weight is scale * code. codes: int8 [rows, 32 blocks]. scales: float16 [rows, blocks]."""
    rows, blocks = _blocks(codes, scales, WIDE)
    body = codes.contiguous().view(torch.uint8).view(rows, blocks, WIDE)
    return torch.cat([_bytes(scales), body], 2).view(rows, -1)


def q4_0(codes: Tensor, scales: Tensor) -> Tensor:
    """uint8 [rows, 18 blocks]: a weight is scale * (code - 8). codes: uint8 0 to 15, [rows, 32 blocks]. scales: float16 [rows,
    blocks]."""
    rows, blocks = _blocks(codes, scales, WIDE)
    halves = codes.contiguous().view(rows, blocks, 2, WIDE // 2)
    return torch.cat([_bytes(scales), halves[:, :, 0] | halves[:, :, 1] << 4], 2).view(rows, -1)


def q4_k(codes: Tensor, scale: Tensor, least: Tensor, parts: Tensor, bottoms: Tensor) -> Tensor:
    """uint8 [rows, 144 blocks]: a weight of part p of a block is scale * parts_p * code - least * bottoms_p.

    codes: uint8 0 to 15, [rows, 256 blocks]. scale, least: float16 [rows, blocks]. parts, bottoms: uint8 0 to 63, [rows, blocks,
    8].
    """
    rows, blocks = _blocks(codes, scale, LONG)
    pairs = codes.contiguous().view(rows, blocks, 4, 2, WIDE)
    body = (pairs[:, :, :, 0] | pairs[:, :, :, 1] << 4).reshape(rows, blocks, LONG // 2)
    (low, high), (below, beyond) = parts.split(4, 2), bottoms.split(4, 2)
    fine = [low | (high >> 4) << 6, below | (beyond >> 4) << 6, high & 15 | (beyond & 15) << 4]
    return torch.cat([_bytes(scale), _bytes(least), *fine, body], 2).view(rows, -1)


def _bytes(numbers: Tensor) -> Tensor:
    """uint8 [rows, blocks, 2] of float16 [rows, blocks]."""
    return numbers.contiguous()[..., None].view(torch.uint8)


def _blocks(codes: Tensor, scales: Tensor, block: int) -> tuple[int, int]:
    rows, blocks = scales.shape
    if scales.dtype != torch.float16 or codes.shape != (rows, blocks * block):
        raise ShoestringError(f"codes {list(codes.shape)} do not fit scales {scales.dtype} {list(scales.shape)}")
    return rows, blocks
