"""Workers that live in one process: their messages lie in mailboxes, and are counted as if they had been sent."""

import time
from collections.abc import Sequence

from torch import Tensor

from shoestring.errors import UsageError
from shoestring.sync.transport.base import Traffic
from shoestring.sync.transport.frame import HEADER_BYTES


class LocalGroup:
    """`size` workers of one process, for study and tests: nothing is random, nothing waits.

    The n-th exchange of one worker meets the n-th of every other, so all must start it before any takes its result.
    `transports` has one for each rank. Raises: UsageError for a size below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise UsageError(f"a group needs at least one worker, not {size}")
        self.size = size
        self.transports = [LocalTransport(self, rank) for rank in range(size)]
        self._posted: dict[int, dict[int, tuple[int, list[Tensor]]]] = {}
        self._taken: dict[int, int] = {}

    def post(self, number: int, rank: int, tag: int, messages: list[Tensor]) -> None:
        self._posted.setdefault(number, {})[rank] = (tag, messages)

    def all_posted(self, number: int) -> bool:
        return len(self._posted.get(number, {})) == self.size

    def take(self, number: int, rank: int) -> list[tuple[int, Tensor]]:
        """(tag, message) of each worker for `rank`. Raises: ValueError while some have not posted theirs."""
        if not self.all_posted(number):
            missing = sorted(set(range(self.size)) - self._posted.get(number, {}).keys())
            raise ValueError(
                f"driven out of step: worker {rank} takes the messages of exchange {number} before worker"
                f"{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} posted theirs"
            )
        found = [(tag, messages[rank]) for _, (tag, messages) in sorted(self._posted[number].items())]
        self._taken[number] = self._taken.get(number, 0) + 1
        if self._taken[number] == self.size:
            del self._posted[number], self._taken[number]
        return found


class LocalTransport:
    """One worker of a `LocalGroup`. It implements `Transport`."""

    def __init__(self, group: LocalGroup, rank: int) -> None:
        self.rank, self.size = rank, group.size
        self.traffic = Traffic()
        self._group, self._started = group, 0

    def exchange(self, messages: Sequence[Tensor], sizes: Sequence[int] | None, *, tag: int) -> "LocalPending":
        """Post the messages. Raises: ValueError unless there is one for each worker."""
        if len(messages) != self.size:
            raise ValueError(f"{len(messages)} messages for {self.size} workers")
        number, self._started = self._started, self._started + 1
        others = [message for rank, message in enumerate(messages) if rank != self.rank]
        self.traffic.sent += sum(message.numel() + HEADER_BYTES for message in others)
        self._group.post(number, self.rank, tag, list(messages))
        return LocalPending(self, self._group, number, tag, sizes)

    def close(self) -> None:
        """Nothing is held."""


class LocalPending:
    """An exchange of a `LocalGroup`. A message under another tag, or of another size than was expected, is None."""

    def __init__(
        self, transport: LocalTransport, group: LocalGroup, number: int, tag: int, sizes: Sequence[int] | None
    ) -> None:
        self._transport, self._group, self._number = transport, group, number
        self._tag, self._sizes, self._began = tag, sizes, time.perf_counter()
        self._result: list[Tensor | None] | None = None

    def done(self) -> bool:
        return self._result is not None or self._group.all_posted(self._number)

    def result(self) -> list[Tensor | None]:
        """The messages. Raises: ValueError ('driven out of step') while a worker has not posted its own."""
        if self._result is None:
            transport = self._transport
            found = self._group.take(self._number, transport.rank)
            others = [message for rank, (_, message) in enumerate(found) if rank != transport.rank]
            transport.traffic.received += sum(message.numel() + HEADER_BYTES for message in others)
            transport.traffic.seconds += time.perf_counter() - self._began
            self._result = [
                message if tag == self._tag and self._fits(rank, message) else None
                for rank, (tag, message) in enumerate(found)
            ]
        return self._result

    def _fits(self, rank: int, message: Tensor) -> bool:
        return self._sizes is None or message.numel() == self._sizes[rank]
