"""The order windows are read in: a permutation computed for any place of it, never stored."""

import hashlib
from math import isqrt

import numpy as np

ROUNDS = 8


class Permutation:
    """A bijection of range(n) that is a pure function of n and a key, in memory that does not grow with n.

    The generalised Feistel network FE2 of Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002):
    a number below a * b is a pair (left in Z_a, right in Z_b); each round adds to one half, modulo its own size, a
    keyed hash of the other. With a = ceil(sqrt n) and b = ceil(n / a) the domain exceeds n by less than sqrt n, and a
    value that lands in that rest is sent through again until it is below n (cycle walking).
    """

    def __init__(self, n: int, *key: int) -> None:
        if not 1 <= n < 1 << 62:
            raise ValueError(f"n = {n}: a permutation is of 1 to 2**62 things")
        side = isqrt(n - 1) + 1
        self.n = n
        self._left, self._right = np.uint64(side), np.uint64(-(-n // side))
        seed = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8 * ROUNDS).digest()
        self._keys = np.frombuffer(seed, dtype="<u8").astype(np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """int64 [...]: what stands at these places, each in range(n)."""
        values = self._network(places.astype(np.uint64))
        outside = values >= np.uint64(self.n)
        while outside.any():
            values[outside] = self._network(values[outside])
            outside = values >= np.uint64(self.n)
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        left, right = np.divmod(values, self._right)
        for key in self._keys.reshape(-1, 2):
            left = (left + _mix(right ^ key[0]) % self._left) % self._left
            right = (right + _mix(left ^ key[1]) % self._right) % self._right
        return left * self._right + right


def _mix(values: np.ndarray) -> np.ndarray:
    """64 bits to 64 bits, every input bit moving every output bit: the finaliser of SplitMix64 (Steele, Lea and Flood,
    "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
