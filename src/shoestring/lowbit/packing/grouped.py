"""Matrices of 4 and 8 bits whose groups of 32 columns have scales of their own, in the byte order that the kernels read.

A matrix is cut into blocks of 16 rows and 32 columns, the last ones filled up with zeros; blocks of the same rows follow each
other. A weight is minimum + scale * code, and scale and minimum are float16, as in GGUF's Q4_1, Q4_0 and Q8_0, whose weights
fit exactly:

* 4 bits, 320 bytes a block, 5 bits a weight. Byte 4 r + c of the k-th 64 belongs to row r; its low four bits are the code of
  column 8 k + c and its high four that of column 8 k + 4 + c, 0 to 15. After these 256 bytes, the 16 scales and the 16 minimums.
* 8 bits, 544 bytes a block, 8.5 bits a weight. Byte 4 r + c of the k-th 64 is the code of row r and column 4 k + c, -128 to 127.
  After these 512 bytes, the 16 scales; there are no minimums.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.packing.layout import QUAD, ROWS, check_shape

GROUP = 32
"""Columns of a group."""

BITS = (4, 8)
CODES = {4: 256, 8: 512}
"""Bytes of the codes of a block."""


class GroupedMatrix(NamedTuple):
    """A matrix in groups, not packed.

    codes: of the columns filled up to whole groups, [rows, 32 groups]: uint8 0 to 15 at 4 bits, int8 at 8.
    scales: float16 [rows, groups]. minimums: likewise at 4 bits; None at 8.
    """

    codes: Tensor
    scales: Tensor
    minimums: Tensor | None

    @property
    def bits(self) -> int:
        return 8 if self.minimums is None else 4

    def values(self) -> Tensor:
        """float32 [rows, 32 groups]: what the codes stand for."""
        rows, groups = self.scales.shape
        found = self.codes.view(rows, groups, GROUP) * self.scales.float()[..., None]
        if self.minimums is not None:
            found = found + self.minimums.float()[..., None]
        return found.view(rows, groups * GROUP)


def groups_of(columns: int) -> int:
    """Groups of a row."""
    return -(-columns // GROUP)


def block_bytes(bits: int) -> int:
    """Bytes of 16 rows and a group. Raises: UsageError for bits that there are none of."""
    if bits not in BITS:
        raise UsageError(f"matrices in groups have 4 or 8 bits, not {bits}")
    return CODES[bits] + 2 * ROWS * (2 if bits == 4 else 1)


def packed_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of a packed matrix."""
    return -(-rows // ROWS) * groups_of(columns) * block_bytes(bits)


def check(packed: Tensor, rows: int, columns: int, bits: int) -> None:
    """Raises: ShoestringError where `packed` is not as many bytes, in a row, as such a matrix takes. Any bytes are a matrix."""
    size = block_bytes(bits)
    check_shape(rows, columns)
    wanted = packed_bytes(rows, columns, bits)
    if packed.dtype != torch.uint8 or packed.shape != (wanted,):
        raise ShoestringError(
            f"a matrix of {rows} x {columns} at {bits} bits in groups is uint8 [{wanted}], blocks of {size} bytes, not "
            f"{str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        )


def pack(matrix: GroupedMatrix) -> Tensor:
    """uint8 [packed_bytes(rows, columns, bits)]. Raises: ShoestringError for other types, shapes or codes."""
    codes, scales, minimums = matrix
    rows, groups = scales.shape
    kind = torch.uint8 if minimums is not None else torch.int8
    if codes.dtype != kind or codes.shape != (rows, groups * GROUP) or scales.dtype != torch.float16:
        raise ShoestringError(
            f"codes {codes.dtype} {list(codes.shape)} do not fit scales {scales.dtype} [{rows}, {groups}]"
        )
    check_shape(rows, groups * GROUP)
    if minimums is not None and (minimums.dtype != torch.float16 or minimums.shape != scales.shape):
        raise ShoestringError(f"minimums {minimums.dtype} {list(minimums.shape)} do not fit {rows} x {groups} scales")
    if minimums is not None and codes.numel() and int(codes.max()) > 15:
        raise ShoestringError(f"four bits hold 0 to 15, not {int(codes.max())}")
    down = -(-rows // ROWS)
    filled = torch.zeros(down * ROWS, groups * GROUP, dtype=torch.uint8)
    filled[:rows] = codes.view(torch.uint8)
    # [down, row, group, quad, column] -> [down, group, quad, row, column]
    quads = filled.view(down, ROWS, groups, GROUP // QUAD, QUAD).permute(0, 2, 3, 1, 4)
    if minimums is not None:
        quads = quads[:, :, 0::2] | quads[:, :, 1::2] << 4
    parts = [quads.reshape(down, groups, CODES[matrix.bits])]
    for numbers in (scales, minimums):
        if numbers is not None:
            whole = torch.zeros(down * ROWS, groups, dtype=torch.float16)
            whole[:rows] = numbers
            parts.append(whole.view(down, ROWS, groups).transpose(1, 2).contiguous().view(torch.uint8))
    return torch.cat(parts, 2).flatten()


def unpack(packed: Tensor, rows: int, columns: int, bits: int) -> GroupedMatrix:
    """What `pack` was given. Raises: ShoestringError for a wrong length."""
    check(packed, rows, columns, bits)
    found = some_rows(packed, torch.arange(rows), rows, columns, bits)
    return GroupedMatrix(*(None if part is None else part.contiguous() for part in found))  # type: ignore[arg-type]


def some_rows(packed: Tensor, which: Tensor, rows: int, columns: int, bits: int) -> GroupedMatrix:
    """The rows of these numbers, [n] int64; the length is checked before."""
    groups, block, row = groups_of(columns), which // ROWS, which % ROWS
    blocks = packed.view(-1, groups, block_bytes(bits))
    codes = blocks[:, :, : CODES[bits]].unflatten(2, (-1, ROWS, QUAD))[block, :, :, row]  # [n, groups, 4 or 8, 4]
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], 3)
    numbers = (
        blocks[:, :, CODES[bits] :].view(torch.float16).unflatten(2, (-1, ROWS))[block, :, :, row]
    )  # [n, groups, 1 or 2]
    whole = codes.reshape(len(which), groups * GROUP)
    minimums = numbers[..., 1] if bits == 4 else None
    return GroupedMatrix(whole if bits == 4 else whole.view(torch.int8), numbers[..., 0], minimums)


def rounded(weight: Tensor, bits: int) -> GroupedMatrix:
    """A matrix [rows, columns] rounded to the nearest: at 4 bits between the smallest and the largest of a group, at 8 within the
    largest absolute value. What fills the last group up is 0 or the number next to it.

    Raises: ShoestringError where a number is not finite, or beyond float16.
    """
    block_bytes(bits)
    rows, columns = weight.shape
    groups = groups_of(columns)
    filled = torch.zeros(rows, groups * GROUP)
    filled[:, :columns] = weight.detach()
    cut = filled.view(rows, groups, GROUP)
    if bits == 4:
        minimums = cut.amin(2).half()
        scales = ((cut.amax(2) - minimums.float()) / 15).half()
    else:
        minimums, scales = None, (cut.abs().amax(2) / 127).half()
    if not bool(scales.isfinite().all()) or (minimums is not None and not bool(minimums.isfinite().all())):
        raise ShoestringError("scales of groups are float16, which cannot hold numbers this large, or none at all")
    steps = torch.where(scales == 0, 1.0, scales.float())[..., None]
    shifted = cut if minimums is None else cut - minimums.float()[..., None]
    low, high, kind = (0, 15, torch.uint8) if bits == 4 else (-127, 127, torch.int8)
    codes = (shifted / steps).round().clamp(low, high).to(kind)
    return GroupedMatrix(codes.view(rows, groups * GROUP), scales, minimums)
