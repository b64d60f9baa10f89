"""Before the first exchange of a run its workers show each other what they begin with, and any difference stops them all."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.exchange import Exchange
from shoestring.sync.fragments import Named
from shoestring.sync.sharing import FIRST_TAG, hear, tell
from shoestring.sync.transport.base import Pending, Transport

NUMBER = 2**20
"""Of the first of two occasions on which plain values are shared (`sharing.share`), far from those of a run."""

_DIGEST_BYTES = 16

Sight = dict[str, str]
"""What a worker begins with, a line for each thing that must be alike: what it is, and its value as text."""

WEIGHTS = "the weights of "


def sight(settings: Mapping[str, object], fragments: Sequence[Sequence[Named]], weights: Mapping[str, Tensor]) -> Sight:
    """settings: of the loop. fragments: its parameters. weights: the first global ones, by name."""
    found = {name: str(value) for name, value in settings.items()}
    for part, fragment in enumerate(fragments):
        for place, (name, parameter) in enumerate(fragment):
            kind = str(parameter.dtype).removeprefix("torch.")
            found[f"parameter {place} of fragment {part}"] = f"{name} {kind} {[*parameter.shape]}"
    return found | {WEIGHTS + name: _digest(_bytes(weight)).hex() for name, weight in weights.items()}


class Introduction:
    """A worker's part in it. look: what this worker begins with.

    The first exchange of a run follows 16 bytes to each other worker, which its round counts as 'control'; any later one is
    as it was. Where these were not alike, later ones raise the same error: a message of another size than is expected may
    be the end of a process.
    """

    def __init__(self, look: Callable[[], Sight]) -> None:
        self.look = look
        self.failed: ShoestringError | None = None

    def before(self, exchange: Exchange, transport: Transport, *, first: bool) -> Exchange:
        """The exchange, after the introduction if it is the first of the run.

        Raises: besides what the exchange does, UsageError where a worker differs from worker 0, in the same words at every
        worker; ShoestringError where a message came damaged.
        """
        if self.failed is not None:
            raise self.failed
        if not first:
            return (yield from exchange)
        began, sent, received = time.perf_counter(), transport.traffic.sent, transport.traffic.received
        try:
            yield from self._introduce(transport)
        except ShoestringError as error:
            self.failed = error
            raise
        control = Counter(control=_DIGEST_BYTES * (transport.size - 1))
        transport.traffic.sent_by_role.update(control)
        took = time.perf_counter() - began
        sent, received = transport.traffic.sent - sent, transport.traffic.received - received
        averaged = yield from exchange
        return replace(
            averaged,
            sent=averaged.sent + sent,
            received=averaged.received + received,
            seconds=averaged.seconds + took,
            sent_by_role=averaged.sent_by_role + control,
        )

    def _introduce(self, transport: Transport) -> Generator[Pending, list[Tensor | None], None]:
        mine, everybody = self.look(), transport.size
        digest = _digest(json.dumps(mine, sort_keys=True).encode())
        message = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        shown = yield transport.exchange([message] * everybody, [_DIGEST_BYTES] * everybody, tag=FIRST_TAG + NUMBER)
        for rank, each in enumerate(shown):
            if each is None:
                raise ShoestringError(f"what worker {rank} begins with came damaged")
        if any(bytes(each.tolist()) != digest for each in shown if each is not None):
            raise UsageError(_difference(hear((yield tell(transport, mine, number=NUMBER + 1)))))


def _difference(sights: list[Sight]) -> str:
    """The first thing in which a worker differs from worker 0, in one line."""
    first = sights[0]
    rank, other = next((rank, sight) for rank, sight in enumerate(sights) if sight != first)
    key = next(key for key in {**first, **other} if first.get(key) != other.get(key))
    if key.startswith(WEIGHTS):
        return (
            f"worker {rank} begins with other weights than worker 0: {key.removeprefix(WEIGHTS)} differs; "
            "load the same into all, or draw them from one seed"
        )
    there, here = (found.get(key, "none") for found in (other, first))
    return f"worker {rank} has {key} = {there} and worker 0 has {here}: the workers of an outer loop need the same"


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
