"""Next-token probabilities that are mixed with those of something else, row by row, before a token is chosen."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.decode.row import Row


class LogitMixture(Protocol):
    """Changes the logits of a row.

    What it remembers of a row is `Row.memory`, which it replaces and never changes in place: answers that part share it.
    """

    def find(self, hidden: Tensor) -> Sequence[Any]:
        """What it looks up of all places of a pass at once, one thing a place. hidden: [n, width], of the model."""
        ...

    def mixed(self, row: Row, logits: Tensor, hidden: Tensor, found: Any) -> Tensor:
        """float32 [V]: the logits of the token after `row.tokens`. Asked once for each place, in the order of the text, from the
        first token of the answer on.

        logits: float32 [V], of the model, there. hidden: [width]. found: what `find` gave there.
        """
        ...

    def spent(self) -> Charge:
        """What it took since this was last asked."""
        ...
