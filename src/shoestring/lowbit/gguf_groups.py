"""The blocks of GGUF's Q4_0, Q4_1 and Q8_0 as matrices in groups: nothing is rounded.

Layouts: ggml's block_q4_0, block_q4_1 and block_q8_0 (llama.cpp, ggml/src/ggml-common.h). A block is 32 columns: a float16
scale d, of Q4_1 a float16 minimum m, then codes: 16 bytes whose low four bits are columns 0 to 15 and whose high four are
columns 16 to 31, or 32 int8. A weight is d (q - 8) of Q4_0, d q + m of Q4_1, d q of Q8_0.
"""

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.lowbit.packing.grouped import GROUP, GroupedMatrix

BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""Bytes of 32 columns, by the types that are matrices in groups."""


def groups(content: Tensor, kind: str) -> GroupedMatrix:
    """The matrix of a tensor's bytes, uint8 [rows, bytes of a row].

    Raises: ShoestringError where the rows are no whole blocks, or a minimum of Q4_0, -8 d, is beyond float16.
    """
    rows, width = content.shape
    size = BLOCK_BYTES[kind]
    if width % size:
        raise ShoestringError(f"a row of {width} bytes is no whole number of {kind}'s blocks of {size}")
    blocks = content.contiguous().view(rows, width // size, size)
    scales = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    if kind == "Q8_0":
        return GroupedMatrix(blocks[..., 2:].reshape(rows, -1).view(torch.int8), scales, None)
    pairs = blocks[..., -GROUP // 2 :]
    codes = torch.cat([pairs & 15, pairs >> 4], 2).view(rows, -1)
    if kind == "Q4_1":
        return GroupedMatrix(codes, scales, blocks[..., 2:4].contiguous().view(torch.float16)[..., 0])
    minimums = (scales.float() * -8).half()  # by a power of two: exact, or infinite
    if bool((minimums.isinf() & scales.isfinite()).any()):
        raise ShoestringError("a scale of Q4_0 is so large that 8 times it is beyond float16")
    return GroupedMatrix(codes, scales, minimums)
