"""Who reads how many tokens in the next pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from shoestring.decode.row import Row


@dataclass(frozen=True)
class Passed:
    """A pass that was.

    decoding: rows that decoded. tokens: places, drafts among them. attended: places times the tokens held before them, of all rows.
    written: tokens that it brought. seconds: that it took, its drafts and choices included.
    """

    decoding: int
    tokens: int
    attended: int
    written: int
    seconds: float


@dataclass(frozen=True)
class Room:
    """What a pass may take.

    rows: that may have a place at a time. tokens: of the pass. free: tokens that the store has room for.
    drafts: tokens that a decoding row may draft, for which a scheduler leaves room.
    last: the pass before this one; None: there was none.
    needed: what a row takes of `free` to read the tokens that it has.
    """

    rows: int
    tokens: int
    free: int
    drafts: int = 0
    last: Passed | None = None
    needed: Callable[[Row], int] = lambda row: len(row.tokens)


class RowReading(NamedTuple):
    """So many of the next tokens of a row."""

    row: Row
    tokens: int


class Scheduler(Protocol):
    """Chooses what a pass reads."""

    def plan(self, rows: Sequence[Row], room: Room) -> list[RowReading]:
        """What to read of which rows.

        rows: all that are not at their end, by priority and then as they came; those with `running` have a place already.
        Returns: at most one for each row, none of more than its `unread` tokens, and at most `room.tokens` in all. Rows that
        have no place yet get one, up to `room.rows` rows with a place in all. Nothing, where there are no rows.
        """
        ...


def in_order(
    decoding: Sequence[Row], reading: Sequence[Row], waiting: Sequence[Row], room: Room, most: int | None = None
) -> list[RowReading]:
    """What a pass reads where rows take their turns: a token of each that decodes, then prompts.

    decoding, reading: rows with a place. waiting: rows that may have one; where one has no room, those after it wait too, as a row
    that is begun and cannot go on would have to be read again.
    most: tokens of prompts; None: as the pass has room for.
    """
    chosen, left = list[RowReading](), room.tokens
    for row in decoding:
        if left > 0:
            chosen.append(RowReading(row, 1))
            left -= 1 + room.drafts
    left = left if most is None else min(left, most)
    for row in reading:
        if left > 0:
            chosen.append(RowReading(row, min(row.unread, left)))
            left -= chosen[-1].tokens
    free = room.free
    for row in waiting:
        if left <= 0 or room.needed(row) > free:
            break
        chosen.append(RowReading(row, min(row.unread, left)))
        left -= chosen[-1].tokens
        free -= room.needed(row)
    return chosen


def parted(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """(rows that decode, rows whose prompt is being read, rows without a place), each in order."""
    running = [row for row in rows if row.running]
    return (
        [row for row in running if row.decoding],
        [row for row in running if not row.decoding],
        [row for row in rows if not row.running],
    )
