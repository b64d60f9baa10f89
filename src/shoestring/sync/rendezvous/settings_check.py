"""The settings check: before the first exchange of a run its workers compare what they begin with; a difference stops all."""

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
from shoestring.sync.rendezvous.all_gather import FIRST_TAG, decode, start_all_gather
from shoestring.sync.transport.base import Pending, Transport

NUMBER = 2**20
"""Of the first of two all-gathers of plain values, far from those of a run."""

_DIGEST_BYTES = 16

Settings = dict[str, str]
"""What a worker begins with: for each thing that must be alike its name, and its value as text."""

WEIGHTS = "the weights of "


def settings_to_compare(
    settings: Mapping[str, object], fragments: Sequence[Sequence[Named]], weights: Mapping[str, Tensor]
) -> Settings:
    """What all workers must begin with alike.

    settings: of the outer loop, by name.
    fragments: its parameters, by fragment.
    weights: the first global weights, by name.
    """
    found = {name: str(value) for name, value in settings.items()}
    for part, fragment in enumerate(fragments):
        for place, (name, parameter) in enumerate(fragment):
            kind = str(parameter.dtype).removeprefix("torch.")
            found[f"parameter {place} of fragment {part}"] = f"{name} {kind} {[*parameter.shape]}"
    return found | {WEIGHTS + name: _digest(_bytes(weight)).hex() for name, weight in weights.items()}


class SettingsCheck:
    """Compares this worker's settings with those of the others, once, before the first exchange of a run.

    It sends a digest of 16 bytes to each other worker, which its round counts as 'control'. Where the digests differ, the
    settings themselves follow, to name the difference. After a failed check every later exchange raises the same error: a
    message of another size than is expected may end a process.

    settings: gives this worker's own.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self.settings = settings
        self.failed: ShoestringError | None = None

    def before(self, exchange: Exchange, transport: Transport, *, first: bool) -> Exchange:
        """The exchange; if it is the first of the run, after the check.

        Raises: besides what the exchange does, UsageError where a worker differs from worker 0, in the same words at every
        worker; ShoestringError where a message came damaged.
        """
        if self.failed is not None:
            raise self.failed
        if not first:
            return (yield from exchange)
        began, sent, received = time.perf_counter(), transport.traffic.sent, transport.traffic.received
        try:
            yield from self._check(transport)
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

    def _check(self, transport: Transport) -> Generator[Pending, list[Tensor | None], None]:
        mine, everybody = self.settings(), transport.size
        digest = _digest(json.dumps(mine, sort_keys=True).encode())
        message = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        shown = yield transport.exchange([message] * everybody, [_DIGEST_BYTES] * everybody, tag=FIRST_TAG + NUMBER)
        for rank, each in enumerate(shown):
            if each is None:
                raise ShoestringError(f"the settings of worker {rank} arrived damaged")
        if any(bytes(each.tolist()) != digest for each in shown if each is not None):
            raise UsageError(_difference(decode((yield start_all_gather(transport, mine, number=NUMBER + 1)))))


def _difference(each: list[Settings]) -> str:
    """The first thing in which a worker differs from worker 0, in one line."""
    first = each[0]
    rank, other = next((rank, settings) for rank, settings in enumerate(each) if settings != first)
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
