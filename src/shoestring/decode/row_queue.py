"""The answers that an engine works on: taken in, forked, ended, and what there is to tell of them."""

import time
from collections.abc import Sequence

from shoestring.decode.blocks import OutOfBlocks
from shoestring.decode.drafter import Drafter
from shoestring.decode.request import AnswerSpent, Event, Request, Stop, Written
from shoestring.decode.row import Row
from shoestring.decode.store import Store


class RowQueue:
    """Rows that are not at their end, by priority and then as they came.

    store, drafter: they let go of a row that ends.
    """

    def __init__(self, store: Store, drafter: Drafter | None) -> None:
        self.rows: list[Row] = []
        self._store, self._drafter = store, drafter
        self._samples: dict[int, int] = {}
        """Of each request that has not ended, how many answers it has had."""
        self._tickets = 0
        self._numbers = 0
        self._events: list[Event] = []

    @property
    def told(self) -> bool:
        """Whether there is nothing left to tell."""
        return not self._events

    def asked(self, request: Request) -> Row:
        """The row that a request would have, which is not in the queue."""
        return Row(self._numbers + 1, self._tickets + 1, request, 0, list(request.prompt), time.monotonic())

    def add(self, row: Row) -> int:
        """Take in a row that `asked` has just made. Returns the number of its request."""
        self._tickets += 1
        self._numbers += 1
        request = row.request
        row.parts, row.constraint = request.samples - 1, request.constraint and request.constraint.copy()
        later = (place for place, other in enumerate(self.rows) if other.request.priority < request.priority)
        self.rows.insert(next(later, len(self.rows)), row)
        self._samples[row.ticket] = request.samples
        return row.ticket

    def of(self, number: int) -> list[Row]:
        """The rows of a request."""
        return [row for row in self.rows if row.ticket == number]

    def next_sample(self, number: int) -> int:
        """The number that another answer to a request would have."""
        return self._samples[number]

    def forked(self, row: Row, sample: int) -> Row:
        """Another answer that goes on from where this one is. It waits for a place where the store has none."""
        now = time.monotonic()
        self._numbers += 1
        other = Row(self._numbers, row.ticket, row.request, sample, list(row.tokens), row.arrived)
        other.answered, other.constraint = row.answered.copy(), row.constraint and row.constraint.copy()
        other.held = other.deepest = row.held
        other.memory = row.memory
        other.seen = now
        try:
            self._store.fork(row, other)
            other.running = True
        except OutOfBlocks:
            other.held = 0
        self.rows.insert(self.rows.index(row) + 1, other)
        self._samples[row.ticket] = max(self._samples[row.ticket], sample + 1)
        return other

    def preempt(self, row: Row) -> None:
        """Take a row's place. It reads all again when there is room."""
        self._store.drop(row)
        row.running, row.held, row.hidden = False, 0, None

    def tell(self, row: Row, written: Sequence[Written], stop: Stop | None = None) -> None:
        """Note what a row has written; where it stops, it leaves the queue."""
        if stop is None:
            self._events.append(Event(row.ticket, row.sample, tuple(written)))
            return
        if row.running:
            self._store.drop(row)
        row.running, row.stop = False, stop
        self.rows.remove(row)
        if not self.of(row.ticket):
            del self._samples[row.ticket]
        if self._drafter is not None:
            self._drafter.drop(row)
        if row.parts:  # it ended before its prompt was read
            for sample in range(1, row.parts + 1):
                self._events.append(Event(row.ticket, sample, (), stop, AnswerSpent()))
        self._events.append(Event(row.ticket, row.sample, tuple(written), stop, row.spent()))

    def events(self) -> list[Event]:
        """What there was to tell since this was asked last."""
        found, self._events = self._events, []
        return found
