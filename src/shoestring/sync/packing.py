"""Unsigned integers of few bits, packed into bytes.

Layout of 1, 2 and 4 bits (ours): by planes. Of 8 / bits planes each byte holds one integer: integer i of `count` stands
in byte i % B at bit (i // B) bits, with B = ceil(count bits / 8). A plane is then a contiguous run of the input, so that
packing and unpacking are a few whole-array shifts with no interleaving. Any other width is cut into its binary digits,
least first, all first digits before all second ones, and those are packed as integers of 1 bit. The bits that are left
over in the last bytes are zero.
"""

import torch
from torch import Tensor

WHOLE = (1, 2, 4, 8)
"""The widths of which a byte holds a whole number."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take: ceil(count bits / 8)."""
    return (count * bits + 7) // 8


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack integers [count] of any integer type into uint8 [packed_bytes(count, bits)], on their device.

    bits: 1 to 32. Raises: ValueError for a width out of that range and for an integer that does not fit.
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
    """The integers [count] that `pack` made a payload of: uint8 of up to 8 bits, int64 of more.

    Raises: ValueError where the payload is not uint8 [packed_bytes(count, bits)].
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
