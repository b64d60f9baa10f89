"""Lengths that go round: short rows in most steps, long ones in the last of each round."""

from shoestring.data.length import require_divisor
from shoestring.method import Count, method


@method(
    "data",
    kind="length",
    name="length_cycle",
    paper="A Multigrid Method for Efficiently Training Video Models, arXiv:1912.00998",
    claim="shapes of a mini-batch that vary by a schedule train a network of video 4.5 times as fast on the wall clock",
    cost="attention over shorter rows costs less; nothing else",
)
class LengthCycle:
    """The paper's short cycle, in one dimension: step t has rows of shapes[t mod n] places, and as many tokens at any length.

    The paper scales the mini-batch up as clips shrink, and the learning rate with it in its long cycle. Here a step has the
    same number of tokens at any length, so the learning rate is left alone.

    shapes: lengths, one for each step of the round; each divides the context.
    each: steps that one length is kept for.
    """

    def __init__(self, context: int, *, shapes: tuple[Count, ...], each: Count = 1) -> None:
        self._shapes = tuple(require_divisor(length, context, "length_cycle: shapes") for length in shapes)
        self._each = each

    def lengths(self) -> tuple[int, ...]:
        return self._shapes

    def __call__(self, step: int, progress: float) -> int:
        return self._shapes[step // self._each % len(self._shapes)]
