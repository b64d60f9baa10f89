"""How fast a model reads and writes here, as measured by the passes it makes."""

from dataclasses import dataclass

MEMORY = 50
"""Passes after which what was measured counts for a third; older passes count for less and less."""


@dataclass
class _Sums:
    """Of passes: their weights, places, seconds, squares of places, places times seconds."""

    weight: float = 0.0
    places: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def add(self, places: int, seconds: float) -> None:
        self.weight += 1
        self.places += places
        self.seconds += seconds
        self.squares += places * places
        self.products += places * seconds

    def fade(self, by: float) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) * by)


class Rates:
    """Seconds of a pass, as a part that every pass has (the weights are read) and one for each of its places: a line through
    the latest passes, by least squares. And how much of what answers may be is written.

    first: passes of known sizes, (places, seconds), that were made before any other. They are not forgotten, so that passes which
    are all of one size do not leave the line without a slope.
    """

    def __init__(self, first: tuple[tuple[int, float], ...] = ()) -> None:
        self._first, self._latest = _Sums(), _Sums()
        for places, seconds in first:
            self._first.add(places, seconds)
        self._allowed = self._written = 1.0
        self._line: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        """Whether there was a pass to measure."""
        return self._first.weight + self._latest.weight > 0

    def observe(self, places: int, seconds: float) -> None:
        """A pass was made."""
        self._latest.fade(1 - 1 / MEMORY)
        self._latest.add(places, seconds)
        self._line = None

    def observe_answer(self, written: int, allowed: int) -> None:
        """An answer came to its end by itself, or was as long as it might be."""
        self._written = self._written * (1 - 1 / MEMORY) + written
        self._allowed = self._allowed * (1 - 1 / MEMORY) + allowed

    @property
    def share(self) -> float:
        """Of the tokens that answers may have, how many they have."""
        return min(1.0, self._written / self._allowed)

    def seconds(self, places: int) -> float:
        """What a pass of so many places takes; 0 while none was measured."""
        fixed, each = self.line
        return fixed + each * places

    @property
    def line(self) -> tuple[float, float]:
        """(seconds of every pass, seconds of each place), neither below 0."""
        if self._line is None:
            self._line = self._fitted()
        return self._line

    def _fitted(self) -> tuple[float, float]:
        one, two = self._first, self._latest
        weight, places, seconds = one.weight + two.weight, one.places + two.places, one.seconds + two.seconds
        squares, products = one.squares + two.squares, one.products + two.products
        if not weight:
            return 0.0, 0.0
        spread = weight * squares - places * places
        each = max(0.0, (weight * products - places * seconds) / spread) if spread > 1e-9 * weight * squares else 0.0
        fixed = (seconds - each * places) / weight
        if fixed < 0 and squares > 0:  # through the origin
            return 0.0, products / squares
        return max(0.0, fixed), each
