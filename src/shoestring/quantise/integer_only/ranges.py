"""Ranges of the numbers within a model as it reads text, and the scales that follow from them."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from shoestring.errors import ShoestringError

CLIPS = 20
"""Ranges that are tried for 8 bits."""

NARROWEST = 0.2
"""Of the whole range, where narrower ones are tried."""

CHUNK, CHUNKS = 4096, 64
"""Numbers that are kept of a batch, and batches of which any are kept."""

HEADROOM = 2.0
"""How much larger than the largest number that was seen one of more than 8 bits may be."""


class Ranges:
    """Collects numbers by name.

    A scale for 8 bits is that of the range which leaves the least squared error, as `StaticRounding` has it, here symmetric. A
    scale for more bits has room for twice the largest number. What lies beyond saturates.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._largest: dict[str, float] = {}
        self._some: dict[str, list[Tensor]] = {}

    def under(self, prefix: str) -> "Ranges":
        """The same numbers, whose names begin with `prefix` and a dot."""
        made = Ranges(f"{self.prefix}{prefix}.")
        made._largest, made._some = self._largest, self._some
        return made

    def look(self, name: str, numbers: Tensor) -> None:
        """Take in numbers of any shape."""
        key, flat = self.prefix + name, numbers.detach().float().flatten()
        largest = float(flat.abs().max())  # of numbers among which one is NaN: NaN, which no comparison would keep
        self._largest[key] = max(self._largest.get(key, 0.0), largest if math.isfinite(largest) else math.inf)
        kept = self._some.setdefault(key, [])
        if len(kept) < CHUNKS:
            kept.append(flat[:: max(len(flat) // CHUNK, 1)].clone())

    def largest(self, names: Iterable[str]) -> float:
        """The largest magnitude among numbers of these names. Raises: ShoestringError where one is not finite or unseen."""
        found = 0.0
        for name in names:
            if self.prefix + name not in self._largest:
                raise ShoestringError(f"{self.prefix}{name} was not seen in the calibration text")
            largest = self._largest[self.prefix + name]
            if largest == math.inf:
                raise ShoestringError(f"{self.prefix}{name} is not finite on the calibration text")
            found = max(found, largest)
        return found

    def eight(self, name: str) -> float:
        """The scale of int8 numbers."""
        whole = self.largest([name]) / 127
        if whole == 0:
            return 1.0
        numbers, best, least = torch.cat(self._some[self.prefix + name]), whole, math.inf
        for place in range(CLIPS):
            scale = whole * (1 - (1 - NARROWEST) * place / (CLIPS - 1))
            lost = float(((numbers / scale).round().clamp(-127, 127) * scale - numbers).square().double().sum())
            if lost < least:
                best, least = scale, lost
        return best

    def wide(self, bits: int, *names: str) -> float:
        """The scale of numbers of so many bits, one for all these names."""
        return HEADROOM * self.largest(names) / ((1 << (bits - 1)) - 1) or 1.0

    def sixteen(self, name: str) -> float:
        """The scale of int16 numbers."""
        return self.wide(16, name)
