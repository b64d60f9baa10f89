"""Seeded draws that are the same with every version of Python.

Of Python's generators only `random()` is promised to stay as it is, so all else is made of that.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream of draws.

    seed: any text; equal texts give equal streams.
    """

    def __init__(self, seed: str) -> None:
        self._source = random.Random(seed)

    def whole(self, least: int, most: int) -> int:
        """A whole number from `least` to `most`, both among them; all about equally likely, as far as 53 bits can tell."""
        span = most - least + 1
        return least + min(int(self._source.random() * span), span - 1)  # of a large one the product may be rounded up

    def happens(self, probability: float) -> bool:
        """True with this probability."""
        return self._source.random() < probability

    def pick(self, values: Sequence[T]) -> T:
        """One of these."""
        return values[self.whole(0, len(values) - 1)]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """All of these in random order (Fisher and Yates)."""
        found = list(values)
        for last in range(len(found) - 1, 0, -1):
            other = self.whole(0, last)
            found[last], found[other] = found[other], found[last]
        return found

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """So many of these, each at most once, in random order."""
        found = list(values)
        for place in range(count):
            other = self.whole(place, len(found) - 1)
            found[place], found[other] = found[other], found[place]
        return found[:count]

    def number(self, digits: int) -> int:
        """A whole number of at most so many digits; each length is equally likely."""
        length = self.whole(1, digits)
        return self.whole(10 ** (length - 1) if length > 1 else 0, 10**length - 1)
