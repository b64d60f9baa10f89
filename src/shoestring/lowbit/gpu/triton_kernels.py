"""The Triton kernels: float activations times a packed matrix, taken apart in registers on the way to the tensor cores.

In the manner of TriRun (Vaidhya et al. (2025), Spectra 1.1, arXiv:2506.23025) and of MARLIN, from which it descends (Frantar
et al. (2024), arXiv:2408.11743): weights lie in memory as the tensor cores' registers want them after a shift and a mask; they
are copied asynchronously, some steps ahead, 16 bytes at a time; activations come from the L2 cache; the columns are shared out
among programs (split-K) so that a small matrix still fills the machine; several warps may add up parts of the same outputs;
sums are float32.

Where ours differ. They are Triton, not CUDA, so the compiler lays out shared memory and registers, and nothing asks the cache to
forget the weights, as Triton's asynchronous copies cannot. A trit needs no subtraction and no conversion (`lowbit.gpu.order`).
MARLIN's stripes run over several slices of the outputs and are added up in the output's 16 bits under locks; here every split
writes float32 sums of its own and a second kernel adds them, always in the same order: the same bits at every run, and no lock
that a stopped kernel could leave behind. Scales multiply float32 sums, not 16-bit weights.

Two kernels: in `narrow` each warp of a program takes a slice of the columns and all of the program's rows, which suits few
tokens; in `wide` the warps share out the rows, so that activations are read fewer times. Both run under Triton's interpreter
(TRITON_INTERPRET=1), which knows neither assembly nor products of bfloat16: for it (COMPILED false) two instructions are an
expression, and the operands of products are float32.
"""

import triton
import triton.language as tl

TERNARY, FOUR, EIGHT = 2, 4, 8
"""Kinds of matrices: what `order` makes; 4-bit integers of `packing.integer`; int8 as it stands (seen as uint8)."""

SHIFT_AND_MASK = tl.constexpr(
    [f"{{ .reg .b32 s; shl.b32 s, $1, {2 * place}; and.b32 $0, s, 0xC000C000; }}" for place in range(8)]
)
"""Of two int16 words in one register. What the compiler makes of the plain expression takes 2.5 instructions a weight."""


@triton.jit
def numbers(
    words: tl.tensor, x: tl.tensor, place: tl.constexpr, kind: tl.constexpr, compiled: tl.constexpr
) -> tl.tensor:
    """The weights at one place of the words, in the type x points to, and exact in it; twice the trits of a ternary matrix."""
    if kind == 2:
        if compiled:
            found = tl.inline_asm_elementwise(
                SHIFT_AND_MASK[place], "=r,r", [words], dtype=x.dtype.element_ty, is_pure=True, pack=2
            )
        else:
            found = ((words << (2 * place)) & -16384).to(tl.int16).to(x.dtype.element_ty, bitcast=True)
    else:
        # 0x4B000000 is 2^23 in float32, and a small integer in its last bits is added to it; converting would be slower
        if kind == 4:
            bits = ((words.to(tl.int32) >> (4 * place)) & 15) | 0x4B000000
            middle = 8388608.0 + 8.0
        else:
            bits = words.to(tl.int32) ^ 0x4B000080
            middle = 8388608.0 + 128.0
        found = (bits.to(tl.float32, bitcast=True) - middle).to(x.dtype.element_ty)
    return found


@triton.jit
def multiply_add(weights: tl.tensor, activations: tl.tensor, total: tl.tensor, compiled: tl.constexpr) -> tl.tensor:
    """total + weights @ activations, in float32."""
    if not compiled:
        weights = weights.to(tl.float32)
        activations = activations.to(tl.float32)
    return tl.dot(weights, activations, total)


@triton.jit
def first_column(
    block: tl.tensor,
    place: tl.constexpr,
    runs: tl.tensor,
    group: tl.tensor,
    PLACES: tl.constexpr,
    RUN: tl.constexpr,
    GROUPED: tl.constexpr,
) -> tl.tensor:
    """(first column of a run, how many columns of its group are left there, its group)."""
    index = block * PLACES + place
    if GROUPED:
        within = (index % runs) * RUN
        found = (index // runs * group + within, group - within, index // runs)
    else:
        found = (index * RUN, group - index * RUN, index * 0)
    return found


@triton.jit(do_not_specialize=["tokens", "runs", "blocks", "share"])
def narrow(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    group: tl.tensor,
    runs: tl.tensor,
    blocks: tl.tensor,
    share: tl.tensor,
    strip_stride: tl.tensor,
    KIND: tl.constexpr,
    PLACES: tl.constexpr,
    RUN: tl.constexpr,
    STRIP: tl.constexpr,
    FLUSH: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SLICES: tl.constexpr,
    WHOLE: tl.constexpr,
    FACTOR: tl.constexpr,
    COMPILED: tl.constexpr,
) -> None:
    """out[token, row] (or a split's share of it) for ROWS rows and TOKENS tokens; each warp takes every SLICES-th block.

    x [tokens, columns]; words as `kind` has them, `strip_stride` apart from strip to strip of STRIP rows; scales [rows, groups];
    share: blocks of a split. FLUSH: places after which sums are multiplied by the scales of a group, 0 for one scale a row.
    WHOLE: the columns are not split; out [tokens, rows], else float32 [splits, tokens, rows] without a row's scale.
    """
    split = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    warp = tl.arange(0, SLICES)
    word = tl.arange(0, RUN)
    last = tl.minimum((split + 1) * share, blocks)
    known = tl.minimum(row, rows - 1)  # reads beyond the last row read that one, and are not stored
    strips = words + (known // STRIP).to(tl.int64)[None, :, None] * strip_stride + (known % STRIP * RUN)[None, :, None]
    x_rows = x + token.to(tl.int64)[None, None, :] * columns
    total = tl.zeros((SLICES, ROWS, TOKENS), dtype=tl.float32)
    for first in range(split * share, last, SLICES):
        block = first + warp
        at = tl.minimum(block, blocks - 1)[:, None, None] * (STRIP * RUN) + word[None, None, :]
        held = tl.load(strips + at, mask=at < columns, other=0) if KIND == 8 else tl.load(strips + at)
        part = total if FLUSH == 0 else tl.zeros((SLICES, ROWS, TOKENS), dtype=tl.float32)
        for place in tl.static_range(PLACES):
            begin, left, which = first_column(block, place, runs, group, PLACES, RUN, FLUSH != 0)
            there = (word[None, :] < left[:, None]) & (block < last)[:, None] & (which < groups)[:, None]
            activations = tl.load(
                x_rows + (begin[:, None] + word[None, :])[:, :, None],
                mask=there[:, :, None] & (token < tokens)[None, None, :],
                other=0.0,
            )
            weights = numbers(held, x, place, KIND, COMPILED)
            part = multiply_add(weights, activations, part, COMPILED)
            if FLUSH != 0 and (place + 1) % FLUSH == 0:
                here = (which < groups)[:, None] & (row < rows)[None, :]
                scale = tl.load(scales + row.to(tl.int64)[None, :] * groups + which[:, None], mask=here, other=0.0)
                total += part * scale[:, :, None]
                part = tl.zeros((SLICES, ROWS, TOKENS), dtype=tl.float32)
        if FLUSH == 0:
            total = part
    store(tl.sum(total, 0), scales, out, split, row, token, rows, tokens, FLUSH, WHOLE, FACTOR)


@triton.jit(do_not_specialize=["tokens", "runs", "blocks", "share"])
def wide(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    group: tl.tensor,
    runs: tl.tensor,
    blocks: tl.tensor,
    share: tl.tensor,
    strip_stride: tl.tensor,
    KIND: tl.constexpr,
    PLACES: tl.constexpr,
    RUN: tl.constexpr,
    STRIP: tl.constexpr,
    FLUSH: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SLICES: tl.constexpr,
    WHOLE: tl.constexpr,
    FACTOR: tl.constexpr,
    COMPILED: tl.constexpr,
) -> None:
    """As `narrow`, one block after the other, its rows shared out among the warps. SLICES is 1."""
    split = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    word = tl.arange(0, RUN)
    last = tl.minimum((split + 1) * share, blocks)
    known = tl.minimum(row, rows - 1)
    strips = words + (known // STRIP).to(tl.int64)[:, None] * strip_stride + (known % STRIP * RUN)[:, None]
    x_rows = x + token.to(tl.int64)[None, :] * columns
    total = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    for block in range(split * share, last):
        at = block * (STRIP * RUN) + word[None, :]
        held = tl.load(strips + at, mask=at < columns, other=0) if KIND == 8 else tl.load(strips + at)
        part = total if FLUSH == 0 else tl.zeros((ROWS, TOKENS), dtype=tl.float32)
        for place in tl.static_range(PLACES):
            begin, left, which = first_column(block, place, runs, group, PLACES, RUN, FLUSH != 0)
            there = (word < left) & (which < groups)
            activations = tl.load(
                x_rows + (begin + word)[:, None], mask=there[:, None] & (token < tokens)[None, :], other=0.0
            )
            weights = numbers(held, x, place, KIND, COMPILED)
            part = multiply_add(weights, activations, part, COMPILED)
            if FLUSH != 0 and (place + 1) % FLUSH == 0:
                scale = tl.load(
                    scales + row.to(tl.int64) * groups + which, mask=(row < rows) & (which < groups), other=0.0
                )
                total += part * scale[:, None]
                part = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
        if FLUSH == 0:
            total = part
    store(total, scales, out, split, row, token, rows, tokens, FLUSH, WHOLE, FACTOR)


@triton.jit
def store(
    total: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    split: tl.tensor,
    row: tl.tensor,
    token: tl.tensor,
    rows: tl.tensor,
    tokens: tl.tensor,
    FLUSH: tl.constexpr,
    WHOLE: tl.constexpr,
    FACTOR: tl.constexpr,
) -> None:
    """Write the sums [ROWS, TOKENS] of a program: with the scales of the rows where they are whole."""
    total *= FACTOR  # before the scale, which may be the smallest of all floats
    if WHOLE and FLUSH == 0:
        total *= tl.load(scales + row, mask=row < rows, other=0.0)[:, None]
    at = (split * tokens + token).to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (token < tokens)[None, :])


@triton.jit(do_not_specialize=["splits", "tokens"])
def add_up(
    parts: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    splits: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """out[token, row] = the sum over the splits, from the first to the last, times the scale of the row where it has one."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(0).to(tl.int64)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(parts + (split * tokens + token) * rows + row, mask=row < rows, other=0.0)
    if SCALED:
        total *= tl.load(scales + row, mask=row < rows, other=0.0)
    tl.store(out + token * rows + row, total.to(out.dtype.element_ty), mask=row < rows)
