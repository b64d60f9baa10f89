"""Framed messages over a process group whose members change: one set of connections, closed at its first failure."""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from shoestring.errors import ShoestringError, first_line
from shoestring.sync.transport.base import PeerLost, Traffic
from shoestring.sync.transport.frame import HEADER_BYTES, announced_length, seal
from shoestring.sync.transport.framing import GLOO_TAGS, framed, one_for_each, opened, reason_of_loss
from shoestring.sync.transport.queued import Queued


class Mesh:
    """The connections among the members of a round: each member has one to every other.

    Sizes of messages need not be known before. A message is received into memory for the longest there may be: gloo ends the
    process at a message that is longer than its buffer, and memory that nothing is written to costs nothing.

    At the first failure all connections are closed. So the others learn of it at once, without waiting for a timeout.

    group: torchft's `ProcessGroupGloo`; `connect` sets it up again.
    key: of the run's frames. Each mesh has a key of its own, made from this one and its name, so that no frame of an
    earlier mesh passes.
    timeout: seconds that one exchange, or setting up the connections, may take.
    limit: the most bytes of a message.
    """

    def __init__(self, group: Any, *, key: bytes, timeout: float, limit: int) -> None:
        self.name = ""
        self.rank, self.size, self.traffic = 0, 1, Traffic()
        self._group, self._key, self._timeout, self._limit = group, key, timeout, limit
        self._mesh_key = b""
        self._lost: tuple[int, str] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shoestring-exchange")

    def connect(self, name: str, *, store: tuple[str, int], rank: int, size: int) -> None:
        """Set the connections up anew.

        name: the same for all members, and unlike any before.
        store: the address at which they find each other.
        rank: of this worker.
        size: how many members there are.

        Raises: PeerLost where a member did not connect within `timeout` seconds.
        """
        self.give_up()
        self.rank, self.size = rank, size
        self._mesh_key = hashlib.blake2b(name.encode(), key=self._key, digest_size=32).digest()
        try:
            if size > 1:
                host, port = store
                self._group.configure(f"{host}:{port}/{name}", "", rank, size, 0, 0, 1, list(range(size)))
        except RuntimeError as error:
            self._group.abort(errored=False)
            raise PeerLost(-1, f"no connection to all of the {size} workers: {first_line(error)}") from None
        self.name, self._lost = name, None

    def give_up(self) -> None:
        """Close all connections, after the exchanges under way (at most `timeout` seconds each)."""
        self._thread.submit(self._abandon, "the round is over").result()

    def close(self) -> None:
        """Close all connections and end the thread; exchanges that wait are dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._abandon("the transport is closed")

    def exchange(self, messages: Sequence[Tensor], sizes: Sequence[int] | None, *, tag: int) -> Queued:
        """Start an exchange: see `Transport.exchange`. The messages must not change until its result is there."""
        taken = one_for_each(messages, sizes, self.size)
        longest = max(message.numel() for message in messages)
        if longest > self._limit:
            raise ShoestringError(f"a message of {longest} bytes: the transport's limit is {self._limit}")
        return Queued(self._thread.submit(self._carry_out, taken, sizes, tag))

    def _abandon(self, reason: str) -> None:
        if self._lost is None:
            self._lost = (-1, reason)
        self.name = ""
        self._group.abort(errored=False)

    def _carry_out(self, messages: list[Tensor], sizes: Sequence[int] | None, tag: int) -> list[Tensor | None]:
        if self._lost is not None:
            raise PeerLost(*self._lost)
        start = time.perf_counter()
        try:
            received = self._trip(messages, tag, start)
        finally:
            self.traffic.seconds += time.perf_counter() - start
        return [
            message
            if rank == self.rank
            else self._opened(received[rank], None if sizes is None else sizes[rank], tag, rank)
            for rank, message in enumerate(messages)
        ]

    def _trip(self, messages: list[Tensor], tag: int, start: float) -> dict[int, Tensor]:
        others = [rank for rank in range(self.size) if rank != self.rank]
        frames = framed(messages, others, lambda each: seal(each, key=self._mesh_key, tag=tag, sender=self.rank))
        buffers = {rank: torch.empty(HEADER_BYTES + self._limit, dtype=torch.uint8) for rank in others}
        works = []
        at = -1  # the worker at the other end of what is being waited for
        try:
            for rank in others:
                at, frame = rank, frames[rank]
                works.append((rank, self._group.recv([buffers[rank]], rank, tag % GLOO_TAGS)))
                works.append((rank, self._group.send([frame], rank, tag % GLOO_TAGS)))
                self.traffic.sent += frame.numel()
            for rank, work in works:
                at = rank
                work.wait(timedelta(seconds=max(self._timeout - (time.perf_counter() - start), 0.001)))
        except RuntimeError as error:
            late = time.perf_counter() - start >= self._timeout
            reason = reason_of_loss(late, self._timeout)
            self._lost = (at, reason)
            self._abandon(reason)
            raise PeerLost(at, reason) from error
        return buffers

    def _opened(self, buffer: Tensor, size: int | None, tag: int, sender: int) -> Tensor | None:
        """The payload of the frame at the start of the buffer; None where it fails its check or has another size."""
        length = HEADER_BYTES + announced_length(buffer)
        if length > buffer.numel() or size not in (None, length - HEADER_BYTES):
            return None
        self.traffic.received += length
        return opened(buffer[:length], key=self._mesh_key, tag=tag, sender=sender)
