"""What a transport is: one exchange, in which every worker gives every other its own message."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from shoestring.errors import ShoestringError


class PeerLost(ShoestringError):
    """A worker that took part in an exchange is gone, or did not answer in time. rank: which, -1 where it is not known."""

    def __init__(self, rank: int, reason: str) -> None:
        self.rank, self.reason = rank, reason
        super().__init__(f"worker {rank} is lost: {reason}" if rank >= 0 else f"a worker is lost: {reason}")


@dataclass
class Traffic:
    """Bytes as they were given to the link, frames included. sent_by_role: those of payloads, by the role of their tensors
    ('matrix', 'embedding', 'head', 'vector', 'control'). seconds: from an exchange's start until its messages were there."""

    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    sent_by_role: Counter[str] = field(default_factory=Counter)


class Pending(Protocol):
    """An exchange under way."""

    def done(self) -> bool:
        """Whether `result` returns at once."""
        ...

    def result(self) -> list[Tensor | None]:
        """The message of each worker, uint8 [bytes] on the CPU, by rank, this one's own among them; waits for it.

        None stands for a message that did not pass its check (torn, altered, of another round): the caller must not
        go on with the round. Raises: PeerLost.
        """
        ...


class Transport(Protocol):
    """The link of one worker to the others.

    rank: this worker, from 0. size: how many there are; both may change between rounds where workers come and go.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def traffic(self) -> Traffic: ...

    def exchange(self, messages: Sequence[Tensor], sizes: Sequence[int] | None, *, tag: int) -> Pending:
        """Start to give messages[r] (uint8 [bytes]) to worker r, for every r, and to take one from each.

        sizes: the bytes to expect from each worker; None where they are not known, which takes another trip to learn.
        tag: of the round and the stage in it; a message under another tag is not this one's. messages[rank] is not sent,
        it is handed back as it is. Exchanges are started in one order on all workers.
        """
        ...

    def close(self) -> None: ...
