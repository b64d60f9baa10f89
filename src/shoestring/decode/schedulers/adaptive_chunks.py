"""Prompts in pieces whose size follows what passes take."""

from collections import deque
from collections.abc import Sequence
from itertools import combinations

import numpy
from numpy.typing import NDArray

from shoestring.decode.row import Row
from shoestring.decode.scheduler import Passed, Room, RowReading, in_order, parted
from shoestring.method import Count, Positive, method

PASSES = 64
"""The latest passes, from which the time of the next is told."""
KNOWN = 4
"""Passes with prompts before the time of one is told."""

Numbers = NDArray[numpy.float64]


def nonnegative_least_squares(features: Numbers, values: Numbers) -> Numbers:
    """The x >= 0 [k] for which |features x - values| is least, of few features [n, k]: every set of them is tried."""
    count = features.shape[1]
    best, least = numpy.zeros(count), float(values @ values)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            own = features[:, chosen]
            found = numpy.linalg.lstsq(own, values, rcond=None)[0]
            missed = own @ found - values
            if (found >= 0).all() and float(missed @ missed) < least:
                best, least = numpy.zeros(count), float(missed @ missed)
                best[list(chosen)] = found
    return best


@method(
    "decode",
    kind="scheduler",
    name="adaptive_chunks",
    paper="Mnemosyne: Parallelization Strategies for Efficiently Serving Multi-Million Context Length LLM Inference Requests "
    "Without Approximations, arXiv:2409.17264",
    claim="chunks that follow the context keep the time between tokens within its target, and read faster than small chunks",
    cost="a fit of three numbers a pass",
)
class AdaptiveChunks:
    """A pass reads as much of prompts as it can in `seconds`, the longest time between two tokens of the rows that decode.

    A pass takes a + b tokens + c attended, `attended` being the places times the tokens before them. The three are fitted, none
    below 0, to the latest passes. So the pieces are large where a prompt begins and shrink as its context grows. Where no row
    decodes, nobody waits for a token, and pieces are as large as a pass allows. The first pieces are small, and double.

    The paper looks the time up in a profile that was measured before; sequence pipelines and caches over several machines are
    not part of a scheduler.

    seconds: of a pass, at most.
    least: tokens of prompts in a pass at least, whatever they take, so that prompts get on.
    """

    def __init__(self, *, seconds: Positive = 0.05, least: Count = 16) -> None:
        self.seconds, self.least = seconds, least
        self._passed: deque[Passed] = deque(maxlen=PASSES)
        self._prompts, self._largest = 0, least
        """Passes that read prompts, and the most tokens of prompts in one."""

    def plan(self, rows: Sequence[Row], room: Room) -> list[RowReading]:
        """As `Scheduler.plan`."""
        if room.last is not None:
            self._passed.append(room.last)
            self._prompts += room.last.tokens > room.last.decoding
            self._largest = max(self._largest, room.last.tokens - room.last.decoding)
        decoding, reading, waiting = parted(rows)
        waiting = waiting[: max(0, room.rows - len(decoding) - len(reading))]
        most = self._most(decoding, [*reading, *waiting], room) if decoding else None
        return in_order(decoding, reading, waiting, room, most)

    def _most(self, decoding: Sequence[Row], prompts: Sequence[Row], room: Room) -> int:
        """How many tokens of these prompts, in this order, a pass has time for."""
        if self._prompts < KNOWN:
            return self.least
        start, token, attended = self._fitted()
        each = 1 + room.drafts
        left = self.seconds - start - sum(each * (token + attended * row.held) for row in decoding)
        most = 0
        for row in prompts:
            price = token + attended * row.held
            fitting = row.unread if price <= 0 else min(row.unread, int(max(0.0, left) / price))
            most, left = most + fitting, left - fitting * price
            if fitting < row.unread:
                break
        return max(self.least, min(most, 2 * self._largest))  # what was never measured is approached by doubling

    def _fitted(self) -> tuple[float, float, float]:
        """Seconds of a pass, of a place of it, and of a place for each token before it."""
        shapes = numpy.array([[1.0, each.tokens, each.attended] for each in self._passed])
        scale = shapes.max(0).clip(1e-12)
        found = nonnegative_least_squares(shapes / scale, numpy.array([each.seconds for each in self._passed])) / scale
        return float(found[0]), float(found[1]), float(found[2])
