"""Ranges of the numbers within a model as it reads text, and the scales that follow from them."""

import math

import torch
from torch import Tensor

from shoestring.errors import ShoestringError

CLIPS = 20
"""Ranges that are tried for 8 bits."""

NARROWEST = 0.2
"""Of the whole range, where narrower ones are tried."""

CHUNK, CHUNKS = 1 << 15, 16
"""Numbers that are kept of a batch, about, and batches of which any are kept."""

HEADROOM = 2.0
"""How much larger than the largest number that was seen one of more than 8 bits may be."""


EVEN = 0.5
"""How far features are made alike: 0 not at all, 1 altogether."""


class Ranges:
    """Collects numbers by name, [..., features] each.

    A scale for 8 bits is that of the range which leaves the least squared error, as `StaticRounding` has it, here symmetric. A
    scale for more bits has room for twice the largest number. What lies beyond saturates.

    Where `by` is given, [features], numbers are divided by it, feature by feature.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._largest: dict[str, Tensor] = {}
        self._some: dict[str, list[Tensor]] = {}

    def under(self, prefix: str) -> "Ranges":
        """The same numbers, whose names begin with `prefix` and a dot."""
        made = Ranges(f"{self.prefix}{prefix}.")
        made._largest, made._some = self._largest, self._some
        return made

    def look(self, name: str, numbers: Tensor) -> None:
        """Take in numbers."""
        key, rows = self.prefix + name, numbers.detach().float().flatten(0, -2)
        largest = rows.abs().amax(0).double()  # where one is NaN: NaN, and so below
        self._largest[key] = torch.maximum(self._largest.get(key, largest), largest)
        kept = self._some.setdefault(key, [])
        if len(kept) < CHUNKS:
            kept.append(rows[:: max(rows.numel() // CHUNK, 1)].clone())

    def features(self, name: str) -> Tensor:
        """float64 [features]: the largest magnitude of each. Raises: ShoestringError where one is not finite, or none was seen."""
        if self.prefix + name not in self._largest:
            raise ShoestringError(f"{self.prefix}{name} was not seen in the calibration text")
        found = self._largest[self.prefix + name]
        if not bool(found.isfinite().all()):
            raise ShoestringError(f"{self.prefix}{name} is not finite on the calibration text")
        return found

    def uneven(self, name: str) -> Tensor:
        """float64 [features]: by what features may be divided to make their ranges more alike, 1 on average of their logarithms.

        SmoothQuant (Xiao et al., 2022, arXiv:2211.10438) with its alpha of 0.5. Different from the paper: by activations alone.
        """
        largest = self.features(name)
        if not bool((largest > 0).any()):
            return torch.ones_like(largest)
        logarithms = largest.clamp_min(float(largest.max()) * 1e-4).log()
        return (EVEN * (logarithms - logarithms.mean())).exp()

    def eight(self, name: str, by: Tensor | None = None) -> float:
        """The scale of int8 numbers."""
        whole = self._whole(name, by) / 127
        if whole == 0:
            return 1.0
        numbers, best, least = torch.cat(self._some[self.prefix + name]), whole, math.inf
        if by is not None:
            numbers = numbers / by.float()
        for place in range(CLIPS):
            scale = whole * (1 - (1 - NARROWEST) * place / (CLIPS - 1))
            lost = float(((numbers / scale).round().clamp(-127, 127) * scale - numbers).square().double().sum())
            if lost < least:
                best, least = scale, lost
        return best

    def wide(self, bits: int, name: str, by: Tensor | None = None) -> float:
        """The scale of numbers of so many bits."""
        return HEADROOM * self._whole(name, by) / ((1 << (bits - 1)) - 1) or 1.0

    def _whole(self, name: str, by: Tensor | None) -> float:
        largest = self.features(name)
        return float((largest if by is None else largest / by).max())
