"""Trits into bytes and back, exactly: the layouts `ternary2` and `ternary1.6`."""

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.lowbit.packing.layout import QUAD, ROWS, Layout, check_packed, check_shape, layout_named


def pack(codes: Tensor, layout: str) -> Tensor:
    """Trits int8 [rows, columns] of -1, 0 and 1 as uint8 [packed_bytes(rows, columns, layout)], on their device.

    Raises: UsageError for an unknown layout, ShoestringError for any other code and for a shape that cannot be packed.
    """
    chosen = layout_named(layout)
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise ShoestringError(
            f"trits are int8 [rows, columns], not {str(codes.dtype).removeprefix('torch.')} {list(codes.shape)}"
        )
    rows, columns = codes.shape
    check_shape(rows, columns)
    if codes.numel() and (int(codes.min()) < -1 or int(codes.max()) > 1):
        raise ShoestringError(f"trits are -1, 0 and 1, not {int(codes.min())} to {int(codes.max())}")
    down, across = chosen.blocks(rows, columns)
    filled = torch.ones(down * ROWS, across * chosen.columns, dtype=torch.uint8, device=codes.device)
    filled[:rows, :columns] = (codes + 1).to(torch.uint8)
    # [down, row, across, place, quad] -> [down, across, row, quad, place]
    places = filled.view(down, ROWS, across, chosen.trits, QUAD).permute(0, 2, 1, 4, 3)
    packed = torch.zeros(places.shape[:-1], dtype=torch.uint8, device=codes.device)
    for place in reversed(range(chosen.trits)):
        packed = packed * (4 if chosen.trits == 4 else 3) + places[..., place]
    return packed.flatten()


def unpack(packed: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    """The trits int8 [rows, columns] that `pack` was given.

    Raises: ShoestringError for a wrong length, a byte that cannot occur, and for anything but zeros where the matrix was
    filled up to whole blocks.
    """
    chosen = layout_named(layout)
    check_packed(packed, rows, columns, layout)
    filled = spread(packed, rows, columns, chosen).to(torch.int8) - 1
    if bool(filled[rows:].any()) or bool(filled[:, columns:].any()):
        raise ShoestringError(
            f"not a {chosen.name} matrix of {rows} x {columns}: what fills its last blocks up is not zero"
        )
    return filled[:rows, :columns].contiguous()


def spread(packed: Tensor, rows: int, columns: int, layout: Layout) -> Tensor:
    """trit + 1 of whole blocks, uint8, as kernels read it: bytes that cannot occur are not refused.

    [16 ceil(rows / 16), layout.columns ceil(columns / layout.columns)].
    """
    down, across = layout.blocks(rows, columns)
    values = packed.view(down, across, ROWS, QUAD)
    places = []
    if layout.trits == 4:
        places = [values >> (2 * place) & 3 for place in range(4)]
    else:
        rest = values.clamp(max=242).to(torch.int32)
        for _ in range(5):
            above = rest * 171 >> 9  # rest / 3 for rest < 256
            places.append((rest - 3 * above).to(torch.uint8))
            rest = above
    # [down, across, row, place, quad] -> [down, row, across, place, quad]
    stacked = torch.stack(places, dim=3).permute(0, 2, 1, 3, 4)
    return stacked.reshape(down * ROWS, across * layout.columns)
