"""Which experts of a layer lie in memory where not all can, and which are fetched before they are asked."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from shoestring.contract.experts import ExpertLayer, ExpertsAsked


class ExpertName(NamedTuple):
    """One expert. layer: place among the layers that have experts, from 0. expert: its number there."""

    layer: int
    expert: int


class ExpertPolicy(Protocol):
    """Chooses. The store calls it from one thread, layer after layer: `ahead`, then `leave` as often as there is no room.

    What it chooses changes no text, only what has to be waited for.
    """

    def know(self, layers: Sequence[ExpertLayer]) -> None:
        """Told once which layers there are, in order."""
        ...

    def ahead(self, layer: int, called: ExpertsAsked) -> list[ExpertName]:
        """A layer's experts are asked: which others are to be fetched meanwhile, the likeliest first. Those that lie in memory, and
        those that have no room, are left out by the store."""
        ...

    def leave(self, layer: int, held: Sequence[int], last: Sequence[int]) -> int:
        """Which of the experts `held` of a layer goes, as another needs its room.

        held: at least one; those that the layer is just being asked are not among them, unless all are. last: for each, the number
        of the pass that last asked for it; -1: none yet.
        """
        ...


def least_recent(held: Sequence[int], last: Sequence[int]) -> int:
    """The expert that was asked the longest ago; of several, the first."""
    return held[min(range(len(held)), key=lambda at: last[at])]
