"""The transport between processes and machines: point-to-point messages of a torch.distributed process group."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.sync.transport.base import PeerLost, Traffic
from shoestring.sync.transport.frame import HEADER_BYTES, seal
from shoestring.sync.transport.framing import GLOO_TAGS, framed, one_for_each, opened, reason_of_loss
from shoestring.sync.transport.heartbeat import Heartbeat
from shoestring.sync.transport.queued import ExchangeThread, Queued

_LENGTHS, _PAYLOADS = 0, 1
_LENGTH_BYTES = 8

GRACE = 1.0
"""The most seconds that an exchange goes on among the other workers after one was lost."""


class DistributedTransport:
    """Framed messages between the workers of a process group, moved by one thread while the caller goes on computing.

    Exchanges are carried out one after another, in the order in which they were started. A message whose check fails is None
    in the result. Where the sizes are not known, 8-byte lengths travel first, framed too. A length that fails its check, or is
    over the limit, makes a message None; the message is still received and thrown away. A message that is shorter than
    announced in `sizes` is None. At a longer one gloo ends this process: the sizes must follow from what all workers know.

    The group is gloo whatever the backend of the caller's tensors. A frame is hashed and checked on the CPU, so NCCL would
    carry it there and back for nothing. Messages on another device are copied to the CPU when an exchange starts.

    After a PeerLost nothing can be exchanged any more: gloo closes its connections when a wait times out. Every later
    exchange raises it again, at once. Workers that go on without the lost one make a new group.

    group: None makes a gloo group of all workers, so all must construct the transport. Else a gloo group that the caller made
    for this and uses for nothing else, as its collectives would meet these messages: one of torch's default group's, or a
    `ProcessGroupGloo` that torch knows nothing of. rank and size are those in the group.
    key: of the run's frames (`frame.derive_key`).
    timeout: seconds that one exchange may take, the wait for slower workers among them.
    limit: the most bytes that a message of unannounced size may have.
    heartbeat: checked several times a second while a result is waited for. Where a worker is frozen, the exchange is given up
    at once. It is closed with this.
    store: in which workers find each other for `among`; None where nobody calls that.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | dist.ProcessGroupGloo | None = None,
        *,
        key: bytes,
        timeout: float,
        limit: int = 2**30,
        heartbeat: Heartbeat | None = None,
        store: dist.Store | None = None,
    ) -> None:
        if isinstance(group, dist.ProcessGroup) and "cpu:gloo" not in dist.get_backend_config(group):
            raise UsageError(f"messages go over gloo, and the group's backend is {dist.get_backend_config(group)}")
        self._made = dist.new_group(timeout=timedelta(seconds=timeout), backend="gloo") if group is None else None
        chosen: Any = self._made or group
        self._group = chosen
        self.rank, self.size = chosen.rank(), chosen.size()
        self._store, self._among = store, list[DistributedTransport]()
        self.traffic = Traffic()
        self._key, self._timeout, self._limit = key, timeout, limit
        self._lost: tuple[int, str] | None = None
        self._heartbeat, self._given_up = heartbeat, False
        self._thread = ExchangeThread()
        self._closed = False

    def exchange(self, messages: Sequence[Tensor], sizes: Sequence[int] | None, *, tag: int) -> Queued:
        """Start an exchange: see `Transport.exchange`. The messages must stay as they are until its result is there.

        traffic.seconds counts from when its turn comes. Raises: ValueError for messages or sizes that are not one a worker;
        ShoestringError for a message over the limit, where the sizes are not known.
        """
        taken = one_for_each(messages, sizes, self.size)
        if not 0 <= tag < 2**62:
            raise ValueError(f"tag {tag}: 0 to 2^62 - 1 is needed")
        longest = max(message.numel() for message in messages)
        if sizes is None and longest > self._limit:
            raise ShoestringError(f"a message of {longest} bytes: the transport's limit is {self._limit}")
        future = self._thread.submit(self._carry_out, taken, None if sizes is None else list(sizes), tag)
        return Queued(future, None if self._heartbeat is None else self._watch)

    def close(self) -> None:
        """End the thread, after the exchange in hand (at most `timeout` seconds); those that wait behind it are dropped.

        An exchange that was given up is not waited for: gloo has no way to interrupt it.
        """
        if not self._closed:
            self._closed = True
            for other in self._among:
                other.close()
            if self._heartbeat is not None:
                self._heartbeat.close()
            self._thread.close(wait=not self._given_up)
            if self._made is not None:
                dist.destroy_process_group(self._made)

    def among(self, ranks: Sequence[int]) -> "DistributedTransport":
        """Another transport, with connections of its own, among some of these workers, who all call it together.

        ranks: of them, this one's among them, in the order of their ranks there.
        It has this one's key, timeout and heartbeat, and is closed with this one. Raises: PeerLost where they cannot connect.
        """
        if self._store is None:
            raise ValueError("this transport was made without a store, in which workers could find each other")
        name = f"shoestring/among/{len(self._among)}/{','.join(map(str, ranks))}"  # as often by each of them
        store = dist.PrefixStore(name, self._store)
        place, wait = list(ranks).index(self.rank), timedelta(seconds=self._timeout)
        try:
            group = dist.ProcessGroupGloo(store, place, len(ranks), wait)
        except RuntimeError as error:
            raise PeerLost(-1, f"no connection to all of the {len(ranks)} workers: {first_line(error)}") from None
        made = DistributedTransport(
            group, key=self._key, timeout=self._timeout, limit=self._limit, heartbeat=self._heartbeat
        )
        self._among.append(made)
        return made

    @property
    def heartbeat(self) -> Heartbeat | None:
        return self._heartbeat

    def _watch(self) -> None:
        if self._given_up and self._lost is not None:
            raise PeerLost(*self._lost)
        assert self._heartbeat is not None
        try:
            self._heartbeat.check()
        except PeerLost as error:
            self._lost, self._given_up = (error.rank, error.reason), True
            raise

    def _sealed(self, payload: Tensor, tag: int) -> Tensor:
        return seal(payload, key=self._key, tag=tag, sender=self.rank)

    def _carry_out(self, messages: list[Tensor], sizes: list[int] | None, tag: int) -> list[Tensor | None]:
        if self._lost is not None:
            raise PeerLost(*self._lost)
        start = time.perf_counter()
        try:
            found: Sequence[int | None] = self._lengths(messages, tag, start) if sizes is None else sizes
            return self._trip(messages, found, 2 * tag + _PAYLOADS, start)
        finally:
            self.traffic.seconds += time.perf_counter() - start

    def _lengths(self, messages: list[Tensor], tag: int, start: float) -> list[int | None]:
        """The size of each worker's message, None where it cannot be believed."""
        numbers = [message.numel().to_bytes(_LENGTH_BYTES, "little") for message in messages]
        own = [torch.tensor(list(number), dtype=torch.uint8) for number in numbers]
        told = self._trip(own, [_LENGTH_BYTES] * self.size, 2 * tag + _LENGTHS, start)
        lengths = [None if each is None else int.from_bytes(bytes(each.tolist()), "little") for each in told]
        return [length if length is not None and length <= self._limit else None for length in lengths]

    def _trip(self, messages: list[Tensor], sizes: Sequence[int | None], tag: int, start: float) -> list[Tensor | None]:
        """Every worker's message, checked. A size of None: nobody knows, the message is taken and not believed."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        frames = framed(messages, others, lambda each: self._sealed(each, tag))
        # gloo takes a message into a buffer that is longer, and memory that nothing is written to costs nothing
        lengths = [self._limit if size is None else size for size in sizes]
        buffers = {rank: torch.empty(HEADER_BYTES + lengths[rank], dtype=torch.uint8) for rank in others}
        receiving: dict[int, dist.Work | None] = {}
        sending: dict[int, dist.Work | None] = {}
        end, slot = start + self._timeout, tag % GLOO_TAGS
        for rank in others:
            try:
                receiving[rank] = self._group.recv([buffers[rank]], rank, slot)
                sending[rank] = self._group.send([frames[rank]], rank, slot)
                self.traffic.sent += frames[rank].numel()
            except RuntimeError:
                end = self._lose(rank, end)
        for rank, work in [*receiving.items(), *sending.items()]:
            try:
                if work is not None:
                    work.wait(timedelta(seconds=max(end - time.perf_counter(), 0.001)))
            except RuntimeError:
                end = self._lose(rank, end)
        if self._lost is not None:
            raise PeerLost(*self._lost)
        self.traffic.received += sum(HEADER_BYTES + (sizes[rank] or 0) for rank in others)
        return [
            message
            if rank == self.rank
            else None
            if sizes[rank] is None
            else opened(buffers[rank], key=self._key, tag=tag, sender=rank)
            for rank, message in enumerate(messages)
        ]

    def _lose(self, rank: int, end: float) -> float:
        """Note the first loss; the time until which to go on with the rest of the exchange.

        Who is gone is told apart from who left because of it only while those stay: so the living finish with each other.
        """
        if self._lost is None:
            late = end - time.perf_counter() < 0.005  # gloo counts whole milliseconds
            self._lost = (rank, reason_of_loss(late, self._timeout))
        return min(end, time.perf_counter() + GRACE)
