"""The layouts of packed trits: how many a byte holds, how rows and columns are cut into blocks, which bytes can occur."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError, did_you_mean

ROWS = 16
"""Rows of a block: one for each 32-bit lane of a 512-bit vector."""

QUAD = 4
"""Adjacent columns that share a lane."""

BLOCK_BYTES = ROWS * QUAD

MOST_COLUMNS = 131072
"""More columns than this are refused: up to here no dot product of int8 codes with int8 weights leaves 32 bits, and none
with trits leaves the integers that float32 holds exactly."""


@dataclass(frozen=True)
class Layout:
    """One of the packings of trits (`docs/packing.md` has them byte by byte).

    Both cut the matrix into blocks of 16 rows and `columns` columns, the last ones filled up with the trit 0. A block is 64
    bytes; byte 4 r + c belongs to row r of the block and to its columns c, 4 + c, 8 + c ..., as many as it holds trits. Blocks
    of the same rows follow each other, so that a kernel that has one row in each lane of a vector reads one run.

    With u = trit + 1 in {0, 1, 2} and place k counting from 0:
        ternary2:    byte = sum over k < 4 of u_k 4^k.  u = 3 cannot occur (read as it stands, the trit would be 2).
        ternary1.6:  byte = sum over k < 5 of u_k 3^k.  243 to 255 cannot occur (kernels read them as 242, five times 1).
    """

    name: str
    code: int
    trits: int

    @property
    def columns(self) -> int:
        """Columns of a block: 16 or 20. A group of columns that has a scale of its own must be a multiple of it."""
        return self.trits * QUAD

    def blocks(self, rows: int, columns: int) -> tuple[int, int]:
        """(blocks down, blocks across) of a matrix."""
        return -(-rows // ROWS), -(-columns // self.columns)

    def bytes(self, rows: int, columns: int) -> int:
        down, across = self.blocks(rows, columns)
        return down * across * BLOCK_BYTES

    def filler(self) -> int:
        """The byte of zeros only."""
        base = 4 if self.trits == 4 else 3
        return sum(base**place for place in range(self.trits))

    def invalid(self, packed: Tensor) -> Tensor:
        """Which bytes cannot occur."""
        return packed & (packed >> 1) & 0x55 != 0 if self.trits == 4 else packed > 242


_LAYOUTS = {layout.name: layout for layout in (Layout("ternary2", 0, 4), Layout("ternary1.6", 1, 5))}

LAYOUTS = tuple(_LAYOUTS)


def layout_named(name: str) -> Layout:
    """The layout of that name. Raises: UsageError where there is none."""
    if name not in _LAYOUTS:
        raise UsageError(f"no packing is called '{name}': {did_you_mean(name, LAYOUTS)}")
    return _LAYOUTS[name]


def packed_bytes(rows: int, columns: int, layout: str) -> int:
    """Bytes of a packed matrix [rows, columns]: 64 ceil(rows / 16) ceil(columns / 16), or / 20 at 1.6 bits."""
    check_shape(rows, columns)
    return layout_named(layout).bytes(rows, columns)


def check_shape(rows: int, columns: int) -> None:
    """Raises: ShoestringError for negative sizes and for more columns than the kernels take."""
    if rows < 0 or columns < 0:
        raise ShoestringError(f"no matrix has {rows} rows and {columns} columns")
    if columns > MOST_COLUMNS:
        raise ShoestringError(f"a packed matrix has at most {MOST_COLUMNS} columns, not {columns}")


def check_size(packed: Tensor, rows: int, columns: int, layout: Layout) -> None:
    """Raises: ShoestringError where `packed` is not as many bytes, in a row, as a matrix [rows, columns] takes."""
    check_shape(rows, columns)
    wanted = layout.bytes(rows, columns)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != wanted:
        raise ShoestringError(
            f"not a {layout.name} matrix of {rows} x {columns}: that is uint8 [{wanted}], "
            f"this is {str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        )


def check_groups(groups: int, columns: int, layout: Layout) -> None:
    """Raises: ShoestringError where so many groups are not equal runs of whole blocks of `columns` columns; one always is."""
    if groups != 1 and (groups < 1 or columns % groups or columns // groups % layout.columns):
        raise ShoestringError(
            f"{groups} groups of {columns} columns: each must be a multiple of the {layout.columns} columns of a "
            f"{layout.name} block"
        )


def check_packed(packed: Tensor, rows: int, columns: int, layout: str) -> None:
    """Whether these bytes are such a matrix: length, type, and no byte that cannot occur; without unpacking.

    For whoever reads a file: the kernels check no bytes. Raises: ShoestringError, with the first wrong byte.
    """
    chosen = layout_named(layout)
    check_size(packed, rows, columns, chosen)
    wrong = chosen.invalid(packed)
    if bool(wrong.any()):
        place = int(wrong.to(torch.uint8).argmax())
        raise ShoestringError(
            f"not a {chosen.name} matrix: byte {place} is {int(packed[place])}, which stands for no trits"
        )
