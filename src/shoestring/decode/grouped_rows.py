"""Schedulers of which a group of the rows decodes in each pass, while the others wait."""

import abc
from collections import Counter
from collections.abc import Sequence

from shoestring.decode.row import Row
from shoestring.decode.scheduler import Room, RowReading, in_order, parted


class GroupScheduler(abc.ABC):
    """A `Scheduler` whose subclass says which rows decode. waited: passes in a row that a row did not decode, by its number."""

    def __init__(self) -> None:
        self.waited: Counter[int] = Counter()

    def plan(self, rows: Sequence[Row], room: Room) -> list[RowReading]:
        """As `Scheduler.plan`."""
        decoding, reading, waiting = parted(rows)
        places = max(0, room.rows - len(decoding) - len(reading))
        group = self.group(decoding)
        chosen = {row.number for row in group}
        self.waited = Counter({row.number: self.waited[row.number] + 1 for row in decoding if row.number not in chosen})
        return in_order(group, reading, waiting[:places], room)

    @abc.abstractmethod
    def group(self, decoding: Sequence[Row]) -> list[Row]:
        """The rows that decode now, of those that could."""
