"""An exchange of one fragment that is under way, and the record of one that has ended."""

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from shoestring.sync.exchange import Averaged, Delta, Exchange


@dataclass(frozen=True)
class Round:
    """How the exchange of a fragment ended.

    fragment: which. step: the inner step, from 1, after which its pseudo-gradient was formed. committed: whether the
    global weights moved; if not, nothing changed and the next pseudo-gradient holds what this one held. participants:
    ranks that were averaged. dropped: ranks whose pseudo-gradient was not finite. damaged: ranks of which this worker
    got a message that was not whole. notes: of each rank, the same for all workers; all None where the round was
    voted down. sent, received: bytes, frames included. sent_by_role: bytes of payloads. exposed_seconds: the training
    thread waited; hidden_seconds: the rest of the exchange's time, spent beside inner steps.
    """

    fragment: int
    step: int
    committed: bool
    participants: list[int]
    dropped: list[int]
    damaged: list[int]
    notes: list[dict[str, Any] | None]
    sent: int
    received: int
    exposed_seconds: float
    hidden_seconds: float
    sent_by_role: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class Flight:
    """A pseudo-gradient on its way.

    sequence: which exchange of the run it is, from 0. generation: how many rounds had been applied when it was formed.
    deltas: as formed, without the residual. absent: they are zeros, which are not to be averaged. running: set once
    the thread has it.
    """

    fragment: int
    step: int
    sequence: int
    generation: int
    note: dict[str, Any]
    deltas: list[Delta]
    exchange: Exchange
    absent: bool = False
    running: Future[Averaged] | None = None
