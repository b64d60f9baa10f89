"""Who reads how many tokens in the next pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from shoestring.decode.row import Row


@dataclass(frozen=True)
class Room:
    """What a pass may take.

    rows: that may have a place at a time. tokens: of the pass. free: tokens that the store has room for.
    drafts: tokens that a decoding row may draft, for which a scheduler leaves room.
    """

    rows: int
    tokens: int
    free: int
    drafts: int = 0


class Reading(NamedTuple):
    """So many of the next tokens of a row."""

    row: Row
    tokens: int


class Scheduler(Protocol):
    """Chooses what a pass reads."""

    def plan(self, rows: Sequence[Row], room: Room) -> list[Reading]:
        """What to read of which rows.

        rows: all that are not at their end, by priority and then as they came; those with `running` have a place already.
        Returns: at most one for each row, none of more than its `unread` tokens, and at most `room.tokens` in all. Rows that
        have no place yet get one, up to `room.rows` rows with a place in all. Nothing, where there are no rows.
        """
        ...
