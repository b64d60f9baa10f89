"""Transports that follow a script, for workers that come and go: of one worker, and of two in threads of one process."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from shoestring.sync.elastic.membership import Membership
from shoestring.sync.transport.base import PeerLost, Traffic


class Given:
    """A pending exchange whose result is there, or fails."""

    def __init__(self, messages: Sequence[Tensor | None], error: Exception | None) -> None:
        self.messages, self.error = messages, error

    def done(self) -> bool:
        return True

    def result(self) -> list[Tensor | None]:
        if self.error is not None:
            raise self.error
        return list(self.messages)


class Script:
    """A transport of one worker that follows a script, a word a round: '' all goes well; 'lost', 'damaged', 'no' (the others
    vote no); 'heal' replaces the state as the round opens."""

    def __init__(self, words: Sequence[str], save: Any, load: Any, step: int, state: Any = None, **more: Any) -> None:
        self.words, self.save, self.load, self.step, self.state = list(words), save, load, step, state
        self.lineage, self.rank, self.size, self.traffic, self.word = "l", 0, 1, Traffic(), ""

    def open_round(self) -> Membership:
        self.word = self.words.pop(0) if self.words else ""
        if self.word == "heal":
            self.load(*self.state)
        healed = self.word == "heal"
        return Membership(0, 1, ("me",), healed, (0,) * healed, self.step, 0.0, 0.0)

    def exchange(self, messages: Sequence[Tensor], sizes: Any, *, tag: int) -> Given:
        if self.word == "damaged":
            return Given([None], None)
        self.traffic.sent += sum(message.numel() for message in messages)
        return Given(messages, PeerLost(0, "gone") if self.word == "lost" else None)

    def close_round(self, ok: bool) -> bool:
        committed = ok and self.word != "no"
        self.step += committed
        return committed


class Pair:
    """The transports of two threads; both are members of every round."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=20)
        self.slots: list[Any] = [None, None]

    def of(self, rank: int, **given: Any) -> Any:
        pair = self

        class One(Script):
            def open_round(self) -> Membership:
                return Membership(rank, 2, ("a", "b"), False, (), self.step, 0.0, 0.0)

            def exchange(self, messages: Sequence[Tensor], sizes: Any, *, tag: int) -> Given:
                pair.slots[rank] = messages
                self.traffic.sent += messages[1 - rank].numel()
                pair.barrier.wait()
                mine = [pair.slots[sender][rank].clone() for sender in range(2)]
                pair.barrier.wait()
                return Given(mine, None)

        link = One([], **given)
        link.rank, link.size = rank, 2
        return link


def together(*acts: Callable[[], Any]) -> list[Any]:
    """What these come to, each in a thread of its own. Raises: what the first of them raises."""
    with ThreadPoolExecutor(len(acts)) as pool:
        return [found.result() for found in [pool.submit(act) for act in acts]]
