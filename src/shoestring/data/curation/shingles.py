"""A text as the set of its short runs of words or characters, each a number of 64 bits."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import xxhash

Unit = Literal["word", "character"]

REMEMBERED = 1 << 20
"""Different words whose digests are remembered, at most."""

_WORDS = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


class _Digests(dict[str, int]):
    """The digest of each word, worked out when it is first met."""

    def __missing__(self, word: str) -> int:
        if len(self) >= REMEMBERED:
            self.clear()
        found = self[word] = xxhash.xxh3_64_intdigest(word.encode(errors="surrogatepass"))
        return found


_digests = _Digests()


def digests(words: Sequence[str]) -> np.ndarray:
    """uint64 [n]: a digest of each word."""
    return np.fromiter(map(_digests.__getitem__, words), np.uint64, len(words))


def units(text: str, unit: Unit) -> np.ndarray:
    """uint64 [T]: the words of a text in lower case (runs of letters and digits), or its characters but white space."""
    if unit == "word":
        return digests(_WORDS.findall(text.lower()))
    joined = "".join(text.lower().split())
    return np.frombuffer(joined.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32).astype(np.uint64)


def runs(found: np.ndarray, length: int) -> np.ndarray:
    """uint64 [max(T - length + 1, 1)]: a digest of every run of `length` units. A text that is shorter is one run.

    A run's units are the digits of a number in an odd base modulo 2^64, its bits then mixed (the finaliser of SplitMix64).
    """
    length = max(1, min(length, len(found)))
    count = max(len(found) - length + 1, 1)
    values = np.full(count, length, dtype=np.uint64)
    for place in range(length if len(found) else 0):
        values = values * _BASE + found[place : place + count]
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(text: str, length: int, unit: Unit = "word") -> np.ndarray:
    """uint64: the digests of the runs of `length` units of a text, each once for each time it occurs."""
    return runs(units(text, unit), length)


def flat(texts: Sequence[str], length: int, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    """(uint64: the shingles of all texts laid end to end; uint64 [n + 1]: where those of each begin, and the end)."""
    found = [shingles(text, length, unit) for text in texts]
    ends = np.cumsum([0, *(len(each) for each in found)]).astype(np.uint64)
    return np.concatenate(found), ends
