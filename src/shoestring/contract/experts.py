"""How a layer of experts and what holds their weights see each other."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class ExpertsAsked(NamedTuple):
    """What a pass asks of the experts of one layer.

    x: [N, width], the tokens that its router read. tokens: [M] int64, which of the N each choice is of, in order of the experts.
    counts: choices of each expert; they add up to M.
    """

    x: Tensor
    tokens: Tensor
    counts: tuple[int, ...]

    @property
    def experts(self) -> list[int]:
        """Those that are asked, in order."""
        return [number for number, count in enumerate(self.counts) if count]


class ExpertSource(Protocol):
    """Holds the weights of experts."""

    def take(self, layer: int, called: ExpertsAsked) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Each expert that a pass asks in this layer, in any order, with its matrices: what reads [inner, width] (gate and up, one
        after the other) and what writes [width, half of inner].

        They are the layer's until the next is asked for.
        """
        ...


class ExpertExchange(Protocol):
    """Reaches experts that are in other processes."""

    def __call__(
        self, rows: Tensor, counts: Sequence[int], experts: Callable[[Tensor, Sequence[int]], Tensor]
    ) -> Tensor:
        """What all experts say of their rows, [M, width]. The processes that divide them call it together.

        rows: [M, width], in order of the experts. counts: rows of each of all experts; they add up to M.
        experts: those of this process: rows in order of these, and how many each has, to what they say.
        """
        ...


@runtime_checkable
class ExpertLayer(Protocol):
    """A layer of experts, whose weights may lie elsewhere."""

    experts: int

    @property
    def expert_bytes(self) -> int:
        """Of one expert's matrices."""
        ...

    @property
    def follows(self) -> bool:
        """Whether its tokens go to the experts of the same numbers as in the layer before."""
        ...

    def put_away(self, source: ExpertSource, layer: int) -> tuple[Tensor, Tensor]:
        """Give the stacks of matrices away, as `ExpertSource.take` names them, and ask `source` from now on. It cannot be trained,
        edited or saved any more. layer: what it calls itself."""
        ...

    def guess(self, x: Tensor) -> Tensor:
        """[N, E]: what its router thinks of x [N, width]; the larger, the likelier that the expert is asked."""
        ...
