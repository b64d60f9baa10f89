"""The Triton kernel for matrices of 4 and 8 bits whose groups of 32 columns have scales of their own.

After MARLIN (Frantar et al. (2024), MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models,
arXiv:2408.11743): float activations times 4-bit weights with a scale a group. Codes are taken apart in registers, where they are
exact, and multiplied on the tensor cores; blocks are loaded some steps ahead; the columns are shared out among programs, so that
few tokens fill the machine too; sums are float32.

Where it differs. It reads `packing.grouped`, the byte order that the kernels on processors read and that GGUF's Q4_0, Q4_1 and
Q8_0 become: the codes of four columns of 16 rows lie together, 64 bytes, in place of MARLIN's order of fragments, so nothing is
re-ordered for a GPU and loads are 4 bytes a row. Groups have 32 columns, not 128, and may have a minimum, whose product is with the
sum of a group's activations: sum_g (s_g sum_c q_c x_c + m_g sum_c x_c). Scales multiply float32 sums, not weights of 16 bits.
Splits are added by a second kernel in a fixed order (`triton_kernels`). It has no 2:4 sparsity, and was not timed on a GPU.
"""

import triton
import triton.language as tl

from shoestring.lowbit.gpu.triton_kernels import multiply_add, numbers, store


@triton.jit
def codes(held: tl.tensor, x: tl.tensor) -> tl.tensor:
    """0 .. 15 in the type x points to: put into the last bits of 2^23 in float32, as converting would be slower."""
    bits = held.to(tl.int32) | 0x4B000000
    return (bits.to(tl.float32, bitcast=True) - 8388608.0).to(x.dtype.element_ty)


@triton.jit(do_not_specialize=["tokens", "groups", "share"])
def groups_of_32(
    x: tl.tensor,
    packed: tl.tensor,
    halves: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    share: tl.tensor,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,
    COMPILED: tl.constexpr,
) -> None:
    """out[token, row], or a split's share of it, for ROWS rows and TOKENS tokens.

    x [tokens, columns]; packed uint8 as `packing.grouped` lays it out, halves the same bytes as float16; share: groups of a split.
    KIND: 4 or 8 bits. WHOLE: the columns are not split; out [tokens, rows], else float32 [splits, tokens, rows].
    """
    PIECES: tl.constexpr = 16 if KIND == 4 else 32
    SIZE: tl.constexpr = 320 if KIND == 4 else 544
    CODES: tl.constexpr = 256 if KIND == 4 else 512
    split = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    known = tl.minimum(row, rows - 1)  # reads beyond the last row read that one, and are not stored
    start = (known // 16).to(tl.int64) * groups * SIZE
    piece = tl.arange(0, PIECES)
    quad, within = piece // 4, piece % 4
    column = (8 if KIND == 4 else 4) * quad + within
    place = (64 * quad + within)[None, :] + 4 * (known % 16)[:, None]
    x_rows = x + token.to(tl.int64)[None, :] * columns
    here = (token < tokens)[None, :]
    last = tl.minimum((split + 1) * share, groups)
    total = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    for group in range(split * share, last):
        block = start + group * SIZE
        held = tl.load(packed + block[:, None] + place)
        scale = tl.load(halves + (block + CODES) // 2 + known % 16).to(tl.float32)
        first = group * 32 + column
        low = tl.load(x_rows + first[:, None], mask=(first < columns)[:, None] & here, other=0.0)
        part = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
        if KIND == 4:
            high = tl.load(x_rows + (first + 4)[:, None], mask=(first + 4 < columns)[:, None] & here, other=0.0)
            part = multiply_add(codes(held & 15, x), low, part, COMPILED)
            part = multiply_add(codes(held >> 4, x), high, part, COMPILED)
            sums = tl.sum(low.to(tl.float32), 0) + tl.sum(high.to(tl.float32), 0)
            minimum = tl.load(halves + (block + CODES) // 2 + 16 + known % 16).to(tl.float32)
            total += part * scale[:, None] + minimum[:, None] * sums[None, :]
        else:
            part = multiply_add(numbers(held, x, 0, 8, COMPILED), low, part, COMPILED)
            total += part * scale[:, None]
    store(total, halves, out, split, row, token, rows, tokens, 1, WHOLE, 1.0)
