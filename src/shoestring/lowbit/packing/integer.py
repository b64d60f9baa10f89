"""Integer matrices at 4 bits a weight: rows one after another, so that a table of them can be looked up row by row.

A row is cut into blocks of 64 columns, the last filled up with 0, and takes 32 bytes a block. Byte j of a block holds
column j in its low four bits and column 32 + j in its high four, each as w + 8 in 0 .. 15: a vector of 32 bytes masked, and
shifted and masked, is two runs of 32 columns. 8-bit matrices need no packing: they are int8 [rows, columns] as they stand.
"""

import torch
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.packing.layout import check_shape

BLOCK = 64
"""Columns of a block."""

OFFSET = 8

BITS = (4, 8)
"""Bits of a weight that can be multiplied."""


def row_bytes(columns: int) -> int:
    """Bytes of a row: 32 ceil(columns / 64)."""
    return BLOCK // 2 * -(-columns // BLOCK)


def check(weights: Tensor, rows: int, columns: int, bits: int) -> None:
    """Whether `weights` is an integer matrix [rows, columns] as the products read it: int8 [rows, columns] at 8 bits, uint8
    [rows, row_bytes(columns)] at 4; no weight is looked at.

    Raises: UsageError for other bits, ShoestringError for another type or shape.
    """
    if bits not in BITS:
        raise UsageError(f"integer matrices of 4 and 8 bits can be multiplied, not of {bits}")
    check_shape(rows, columns)
    kind, width = (torch.int8, columns) if bits == 8 else (torch.uint8, row_bytes(columns))
    if weights.dtype != kind or weights.shape != (rows, width):
        raise ShoestringError(
            f"a {bits}-bit matrix of {rows} x {columns} is {str(kind).removeprefix('torch.')} [{rows}, {width}], "
            f"not {str(weights.dtype).removeprefix('torch.')} {list(weights.shape)}"
        )


def pack(codes: Tensor) -> Tensor:
    """Integers int8 [rows, columns] in -8 .. 7 as uint8 [rows, row_bytes(columns)].

    Raises: ShoestringError for any other integer and for a shape that cannot be packed.
    """
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise ShoestringError(
            f"codes are int8 [rows, columns], not {str(codes.dtype).removeprefix('torch.')} {list(codes.shape)}"
        )
    rows, columns = codes.shape
    check_shape(rows, columns)
    if codes.numel() and (int(codes.min()) < -8 or int(codes.max()) > 7):
        raise ShoestringError(f"four bits hold -8 to 7, not {int(codes.min())} to {int(codes.max())}")
    blocks = -(-columns // BLOCK)
    filled = torch.full((rows, blocks * BLOCK), OFFSET, dtype=torch.uint8, device=codes.device)
    filled[:, :columns] = (codes + OFFSET).to(torch.uint8)
    halves = filled.view(rows, blocks, 2, BLOCK // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).view(rows, row_bytes(columns))


def unpack(packed: Tensor, columns: int) -> Tensor:
    """The integers int8 [rows, columns] that `pack` was given, or of any selection of its rows.

    Raises: ShoestringError where the rows have not the length of `columns` columns, or are not filled up with 0.
    """
    check_shape(0, columns)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != row_bytes(columns):
        raise ShoestringError(
            f"not a 4-bit matrix of {columns} columns: that is uint8 [rows, {row_bytes(columns)}], "
            f"this is {str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        )
    filled = spread(packed)
    if bool(filled[:, columns:].any()):
        raise ShoestringError(f"not a 4-bit matrix of {columns} columns: what fills its last block up is not zero")
    return filled[:, :columns].contiguous()


def spread(packed: Tensor) -> Tensor:
    """The integers of whole blocks, int8 [rows, 64 blocks]; nothing is checked."""
    rows, width = packed.shape
    pairs = packed.reshape(rows, width * 2 // BLOCK, 1, BLOCK // 2)
    return torch.cat([pairs & 15, pairs >> 4], dim=2).view(rows, width * 2).to(torch.int8) - OFFSET
