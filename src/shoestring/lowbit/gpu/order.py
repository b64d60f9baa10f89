"""How the numbers of a packed matrix lie in a GPU's memory, and the exact re-ordering from the packed file to there and back.

The file's order (`lowbit.packing`) is made for the lanes of a processor's vectors. On a GPU a ternary matrix is int16 words of
eight trits, in either of the file's layouts: 2 bits a weight, each trit t as the two bits of t & 3 (a sign and a magnitude), so
that shifting a word left and masking its two highest bits gives 2 t as a float16, and as a bfloat16, with no arithmetic.

    group     the columns that share a scale, filled up with zeros to a multiple of RUN = 16 or 32
    run       RUN adjacent columns of a group. The runs of a row are counted through all its groups.
    block     16 rows and eight runs, the last one filled up: int16 [16, RUN]. Word [r, j] holds column j of each of
              the eight runs, that of run p in its bits 15 - 2p and 14 - 2p.
    matrix    int16 [ceil(rows / 16), blocks across, 16, RUN]

A block is 512 or 1024 bytes in one piece, read 16 bytes at a time by neighbouring threads. Words j and j + 1 lie in one register,
and shift and mask make two adjacent columns of one run of it: what a tensor core takes. A run is within a group: it has one scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.errors import ShoestringError
from shoestring.lowbit.packing import check_packed, layout_named, pack
from shoestring.lowbit.packing.layout import ROWS as STRIP
from shoestring.lowbit.packing.ternary import spread

PLACES = 8
"""Trits of a word."""

SLAB = 64 * STRIP
"""Rows that are re-ordered at once: bounds the memory it takes to some tens of bytes a column for each of them."""

TOP = -16384
"""The two highest bits of an int16."""


@dataclass(frozen=True)
class Order:
    """The order of a ternary matrix [rows, columns] whose rows have `groups` scales each.

    Raises: ShoestringError where the groups do not divide the columns.
    """

    rows: int
    columns: int
    groups: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 0 or self.groups < 1 or self.columns % self.groups:
            raise ShoestringError(f"{self.groups} groups do not divide {self.rows} rows of {self.columns} columns")

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.columns // self.groups

    @property
    def run(self) -> int:
        """Columns of a run: 32, or 16 where groups are not multiples of 32."""
        return 32 if self.groups == 1 or self.group % 32 == 0 else 16

    @property
    def runs(self) -> int:
        """Runs of a group."""
        return -(-self.group // self.run)

    @property
    def strips(self) -> int:
        """Blocks down."""
        return -(-self.rows // STRIP)

    @property
    def blocks(self) -> int:
        """Blocks across."""
        return -(-self.groups * self.runs // PLACES)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.strips, self.blocks, STRIP, self.run


def reorder(packed: Tensor, order: Order, layout: str) -> Tensor:
    """The matrix `packed`, uint8 in the file's order, as int16 `order.shape`, on its device.

    Raises: ShoestringError where the bytes are not such a matrix. What fills up the file's last blocks is not looked at.
    """
    check_packed(packed, order.rows, order.columns, layout)
    words = packed.new_empty(order.shape, dtype=torch.int16)
    if not words.numel():
        return words
    across = layout_named(layout).bytes(STRIP, order.columns)
    for first in range(0, order.rows, SLAB):
        last = min(first + SLAB, order.rows)
        part = packed[first // STRIP * across : -(-last // STRIP) * across]
        codes = spread(part, last - first, order.columns, layout_named(layout)).to(torch.int8) - 1
        codes[last - first :] = 0
        words[first // STRIP : -(-last // STRIP)] = _into_words(codes[:, : order.columns], order)
    return words


def restore(words: Tensor, order: Order, layout: str) -> Tensor:
    """What `reorder` was given, of a matrix that `packing.pack` made. Raises: ShoestringError for words of another shape."""
    check_words(words, order)
    if not words.numel():
        return pack(words.new_zeros((order.rows, order.columns), dtype=torch.int8), layout)
    parts = []
    for first in range(0, order.rows, SLAB):
        last = min(first + SLAB, order.rows)
        part = words[first // STRIP : -(-last // STRIP)]
        codes = (doubled(part, order, torch.float16)[: last - first] / 2).to(torch.int8)
        parts.append(pack(codes, layout))
    return torch.cat(parts)


def doubled(words: Tensor, order: Order, dtype: torch.dtype) -> Tensor:
    """Twice the trits of some strips of the matrix, float16 or bfloat16 [16 strips, columns]: -2, 0 (or -0) and 2."""
    strips = len(words)
    shifts = torch.arange(0, 2 * PLACES, 2, dtype=torch.int16, device=words.device)[:, None]
    bits = torch.bitwise_and(words[:, :, :, None] << shifts, TOP)  # [strips, blocks, 16, place, run]
    runs = bits.view(dtype).transpose(1, 2).reshape(strips * STRIP, order.blocks * PLACES, order.run)
    groups = runs[:, : order.groups * order.runs].reshape(strips * STRIP, order.groups, order.runs * order.run)
    return groups[:, :, : order.group].reshape(strips * STRIP, order.columns)


def check_words(words: Tensor, order: Order) -> None:
    """Raises: ShoestringError where `words` are not int16 of the order's shape."""
    if words.dtype != torch.int16 or tuple(words.shape) != order.shape:
        raise ShoestringError(
            f"a matrix of {order.rows} x {order.columns} in the order of the GPU is int16 {list(order.shape)}, "
            f"not {str(words.dtype).removeprefix('torch.')} {list(words.shape)}"
        )


def _into_words(codes: Tensor, order: Order) -> Tensor:
    """int8 [16 strips, columns] -> int16 [strips, blocks, 16, run]."""
    strips = len(codes) // STRIP
    groups = F.pad(codes.view(len(codes), order.groups, order.group), (0, order.runs * order.run - order.group))
    flat = groups.view(len(codes), order.groups * order.runs * order.run)
    width = order.blocks * PLACES * order.run
    places = F.pad(flat, (0, width - flat.shape[1])).view(strips, STRIP, order.blocks, PLACES, order.run)
    words = torch.zeros(strips, STRIP, order.blocks, order.run, dtype=torch.int16, device=codes.device)
    for place in range(PLACES):
        words = words << 2 | (places[:, :, :, place] & 3)
    return words.transpose(1, 2)
