"""Who proposes the tokens that may come next, so that one pass can check several."""

from collections.abc import Sequence
from typing import Protocol

from shoestring.budget.charge import Charge
from shoestring.decode.row import Draft, Row


class Drafter(Protocol):
    """Proposes tokens.

    most: tokens of a draft at most. wants_hidden: whether it reads `Row.hidden`.
    """

    most: int
    wants_hidden: bool

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[Draft]:
        """A draft for each row, of at most so many tokens; it may be empty."""
        ...

    def spent(self) -> Charge:
        """What it took since this was last asked."""
        ...

    def drop(self, row: Row) -> None:
        """This row is at its end: what is kept of it can go."""
        ...
