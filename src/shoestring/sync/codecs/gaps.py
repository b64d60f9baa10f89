"""The places of k entries out of n, near the least number of bits that any code takes for them.

The gaps between ascending places are Golomb-Rice coded (Rice (1979), Some practical universal noiseless coding techniques;
Golomb (1966), Run-length encodings): of a gap g, the low b bits as they are and g >> b in unary, zeros closed by a one. For
places strewn evenly that is within 3 % of the entropy, where plain numbers of log2 n bits are 3 times as long at k = n / 100.
b = 0 is a bitmap of the n entries, so that none is shorter; wherever the places lie, k (2 + log2(n / k)) bits are about the
most it takes. Low bits and unary digits are two streams, so that both are read by whole-array operations.

Payload: b, one byte; the low bits of all gaps, packed; the unary digits, packed.
"""

import torch
from torch import Tensor

from shoestring.sync.codecs.packing import pack, packed_bytes, unpack


def most_bytes(count: int, total: int) -> int:
    """The most bytes that `count` >= 1 places out of `total` take: gaps sum to at most total - count."""
    return min(_bytes(count, low, (total - count) >> low) for low in _choices(count, total))


def encode_places(places: Tensor, total: int) -> Tensor:
    """The payload, uint8, of ascending places [count] in 0 .. total - 1, with the b that makes it shortest."""
    count = places.numel()
    gaps = places.diff(prepend=places.new_full((1,), -1)) - 1
    choices = _choices(count, total)
    quotients = torch.stack([(gaps >> low).sum() for low in choices]).tolist()
    _, low, quotient = min((_bytes(count, low, sum_), low, sum_) for low, sum_ in zip(choices, quotients, strict=True))
    unary = torch.zeros(count + quotient, dtype=torch.uint8, device=places.device)
    unary[((gaps >> low) + 1).cumsum(0) - 1] = 1
    head = torch.tensor([low], dtype=torch.uint8, device=places.device)
    return torch.cat([head, *([pack(gaps & (1 << low) - 1, low)] if low else []), pack(unary, 1)])


def decode_places(payload: Tensor, count: int, total: int) -> Tensor:
    """The places, int64 [count], ascending. Raises: ValueError where the payload is not one of such places."""
    low = int(payload[0]) if payload.numel() else 0
    start = 1 + packed_bytes(count, low)
    if low not in _choices(count, total) or not start < payload.numel() <= _bytes(count, low, (total - count) >> low):
        raise ValueError(f"a payload that cannot be {count} places out of {total}")
    unary = unpack(payload[start:], 1, 8 * (payload.numel() - start))
    ends = unary.nonzero().flatten()
    if ends.numel() != count or packed_bytes(int(ends[-1]) + 1, 1) != payload.numel() - start:
        raise ValueError(f"a payload with {ends.numel()} places, or digits after the last, where {count} belong")
    gaps = (ends.diff(prepend=ends.new_full((1,), -1)) - 1) << low
    if low:
        gaps += unpack(payload[1:start], low, count)
    places = (gaps + 1).cumsum(0) - 1
    if int(places[-1]) >= total:
        raise ValueError(f"a payload with place {int(places[-1])} of {total} entries")
    return places


def _choices(count: int, total: int) -> range:
    """The numbers of low bits that can be best: up to those of the mean gap, and one more."""
    return range(min((total // count).bit_length() + 1, 32) + 1)


def _bytes(count: int, low: int, quotient: int) -> int:
    """The length of a payload whose gaps >> low sum to `quotient`."""
    return 1 + packed_bytes(count, low) + packed_bytes(count + quotient, 1)
