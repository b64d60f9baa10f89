"""Chance that depends on who asks for it, and on nothing else: the same number for the same request and place, whatever is computed
beside it, before it or again."""

from hashlib import blake2b
from struct import pack, unpack

BITS = 53
"""Of a double's fraction."""


def draw(seed: int, sample: int, position: int, purpose: int = 0) -> float:
    """A number in [0, 1), as if drawn at random.

    seed: of the request. sample: which of its answers. position: of the token that is chosen.
    purpose: 0 chooses the token; other draws at one place have other numbers.
    """
    counted = pack("<QQQQ", seed % 2**64, sample, position, purpose)
    (number,) = unpack("<Q", blake2b(counted, digest_size=8).digest())
    return float((number >> (64 - BITS)) / 2**BITS)
