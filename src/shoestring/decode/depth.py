"""Which layers the tokens of an answer go through, and which channel mixers.

A token leaves keys in the layers that it goes through, and in no others. So what comes after it may go through these layers alone:
a layer that was left out stays left out for the rest of the text, and nothing is ever computed again. A channel mixer keeps
nothing: it may be left out at one place and asked at the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.model import Depth
from shoestring.decode.row import Row
from shoestring.decode.work import RowWork


class RowDepth(Protocol):
    """Chooses the layers of each token of a row, by its place alone: a row that lost its place is read again in the same way.
    A class that inherits from it mixes the channels of every layer that is gone through."""

    def layers(self, row: Row, place: int) -> frozenset[int] | None:
        """The layers that the token at this place of `row.tokens` goes through, numbers from 0; None: all. No layer that a
        place before it left out."""
        ...

    def through(self, chosen: frozenset[int] | None, works: Sequence[RowWork]) -> Depth | None:
        """The depth of a pass that reads these works, all of them through the `chosen` layers; None: everything."""
        return None if chosen is None else Through(chosen)

    def spent(self) -> Charge:
        """What choosing took since this was last asked."""
        ...


@dataclass(frozen=True)
class Through(Depth):
    """A `contract.model.Depth` of just these layers."""

    chosen: frozenset[int]

    def times(self, layer: int, hidden: Tensor) -> int:
        """Once, or not at all."""
        return int(layer in self.chosen)


def alike(depth: RowDepth, row: Row, count: int) -> int:
    """How many of the next `count` tokens of a row go through the same layers, and can be read together; at least 1."""
    first = depth.layers(row, row.held)
    same = 1
    while same < count and depth.layers(row, row.held + same) == first:
        same += 1
    return same
