"""Unsigned integers of few bits, packed into bytes.

The layout of 1, 2 and 4 bits is our own, by planes. There are 8 / bits planes; each byte holds one integer of each plane.
Integer i of `count` is in byte i % B at bit (i // B) bits, with B = ceil(count bits / 8). A plane is then a contiguous run of
the input, so packing and unpacking are a few shifts of whole arrays. Integers of any other width are cut into their binary
digits, least first, all first digits before all second ones. Those are packed as integers of 1 bit. Unused bits in the last
bytes are zero.
"""

import torch
from torch import Tensor

WHOLE = (1, 2, 4, 8)
"""The widths that divide a byte."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take: ceil(count bits / 8)."""
    return (count * bits + 7) // 8


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack integers into uint8 [packed_bytes(count, bits)], on their device.

    integers: [count], of any integer type.
    bits: of each, 1 to 32.

    Raises: ValueError for a width out of that range, and for an integer that does not fit.
    """
    _check_width(bits)
    if integers.numel() == 0:
        return torch.empty(0, dtype=torch.uint8, device=integers.device)
    low, high = torch.aminmax(integers)
    if int(low) < 0 or int(high) >= 1 << bits:
        raise ValueError(f"cannot pack {int(low)} to {int(high)} in {bits} bits")
    if bits in WHOLE:
        return _pack_planes(integers.to(torch.uint8), bits)
    wide = integers.to(torch.int64)
    return _pack_planes(torch.cat([(wide >> place & 1).to(torch.uint8) for place in range(bits)]), 1)


def unpack(payload: Tensor, bits: int, count: int) -> Tensor:
    """The integers [count] that `pack` packed: uint8 for up to 8 bits, int64 for more.

    payload: uint8 [packed_bytes(count, bits)].
    bits: of each integer.
    count: how many there are.

    Raises: ValueError where the payload is of another shape or type.
    """
    _check_width(bits)
    expected = packed_bytes(count, bits)
    if payload.dtype != torch.uint8 or payload.shape != (expected,):
        raise ValueError(f"{count} integers of {bits} bits take {expected} bytes, not {payload.numel()}")
    if bits in WHOLE:
        return _unpack_planes(payload, bits, count)
    digits = _unpack_planes(payload, 1, count * bits).view(bits, count)
    integers = torch.zeros(count, dtype=torch.uint8 if bits < 8 else torch.int64, device=payload.device)
    for place in range(bits):
        integers |= digits[place].to(integers.dtype) << place
    return integers


def _check_width(bits: int) -> None:
    if not 1 <= bits <= 32:
        raise ValueError(f"integers of 1 to 32 bits can be packed, not of {bits}")


def _pack_planes(integers: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return integers.clone()
    size = packed_bytes(integers.numel(), bits)
    planes = integers.split(size)
    payload = planes[0].clone()
    for place, plane in enumerate(planes[1:], start=1):
        payload[: plane.numel()] |= plane << place * bits
    return payload


def _unpack_planes(payload: Tensor, bits: int, count: int) -> Tensor:
    if bits == 8:
        return payload.clone()
    integers = torch.empty(count, dtype=torch.uint8, device=payload.device)
    if count:
        for place, plane in enumerate(integers.split(payload.numel())):
            torch.bitwise_and(payload[: plane.numel()] >> place * bits, (1 << bits) - 1, out=plane)
    return integers
