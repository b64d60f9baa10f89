"""Codes of few levels as bytes, one after another without gaps."""

import numpy as np
import torch
from torch import Tensor

from shoestring.errors import ShoestringError

TRITS = 5
"""Codes of three levels in a byte: 3^5 = 243."""


def width(levels: int) -> int:
    """Whole bits of a code."""
    return max(1, (levels - 1).bit_length())


def packed_bytes(count: int, levels: int) -> int:
    """Bytes of so many codes."""
    return -(-count // TRITS) if levels == 3 else -(-count * width(levels) // 8)


def pack(codes: Tensor, levels: int) -> Tensor:
    """uint8 [packed_bytes(n, levels)] of codes [n], uint8 below `levels`.

    Three levels: five codes c_0 to c_4 are the byte c_0 + 3 c_1 + 9 c_2 + 27 c_3 + 81 c_4. Else a code takes `width(levels)` bits,
    the lowest first, from the lowest bit of each byte on. What fills the last byte up is 0.
    """
    flat = codes.reshape(-1)
    if flat.numel() and int(flat.max()) >= levels:
        raise ShoestringError(f"codes of {levels} levels lie below {levels}, not at {int(flat.max())}")
    if levels == 3:
        filled = torch.zeros(-(-len(flat) // TRITS) * TRITS, dtype=torch.uint8)
        filled[: len(flat)] = flat
        powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.int32)
        return (filled.view(-1, TRITS).int() * powers).sum(1).to(torch.uint8)
    bits = width(levels)
    if bits == 8:
        return flat.clone()
    planes = (flat[:, None] >> torch.arange(bits, dtype=torch.uint8)) & 1
    return torch.from_numpy(np.packbits(planes.numpy().reshape(-1), bitorder="little"))


def unpack(packed: Tensor, count: int, levels: int) -> Tensor:
    """The uint8 codes [count] that `pack` was given. Raises: ShoestringError for another length, or bytes that cannot occur."""
    wanted = packed_bytes(count, levels)
    if packed.dtype != torch.uint8 or packed.shape != (wanted,):
        raise ShoestringError(f"{count} codes of {levels} levels are uint8 [{wanted}], not {list(packed.shape)}")
    if levels == 3:
        if packed.numel() and int(packed.max()) > 242:
            raise ShoestringError(f"a byte of five codes of three levels is at most 242, not {int(packed.max())}")
        rest, places = packed, list[Tensor]()
        for _ in range(TRITS):
            places.append(rest % 3)
            rest = rest // 3
        found = torch.stack(places, 1).reshape(-1)
    elif width(levels) == 8:
        found = packed.clone()
    else:
        bits = width(levels)
        planes = torch.from_numpy(np.unpackbits(packed.numpy(), bitorder="little"))
        if bool(planes[count * bits :].any()):
            raise ShoestringError("what fills the last byte of some codes up is not zero")
        powers = torch.tensor([1 << place for place in range(bits)], dtype=torch.uint8)
        return _below((planes[: count * bits].view(count, bits) * powers).sum(1, dtype=torch.uint8), levels)
    if bool(found[count:].any()):
        raise ShoestringError("what fills the last byte of some codes up is not zero")
    return _below(found[:count], levels)


def _below(codes: Tensor, levels: int) -> Tensor:
    if codes.numel() and int(codes.max()) >= levels:
        raise ShoestringError(f"a code of {levels} levels is {int(codes.max())}")
    return codes
