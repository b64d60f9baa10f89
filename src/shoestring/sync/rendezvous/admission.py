"""Admission: before workers train together they compare what they are to do, and any difference stops all of them."""

import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

import torch.distributed as dist

from shoestring import __version__
from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.transport.frame import code

_POLL = 0.02
LINGER = 3.0
"""The most seconds that worker 0 waits until the others have read its fingerprint."""

_LONGEST = 4096

DIFFERENCES = {
    "recipe": "trains by another recipe",
    "model": "has another model",
    "data": "reads another corpus or tokenizer",
}
"""What a worker does otherwise, by the field of its `RunFingerprint` that differs."""


@dataclass(frozen=True, kw_only=True)
class RunFingerprint:
    """What all workers of a run must have alike. The caller makes the hex digests; '' where there is nothing to compare.

    workers: how many the run has.
    start: what its first step goes on from, in words that follow 'starts'.
    recipe: digest of the recipe.
    model: digest of the model's shape.
    data: digest of the corpus and its tokenizer.
    version: of the program.
    """

    workers: int
    start: str = "anew"
    recipe: str = ""
    model: str = ""
    data: str = ""
    version: str = __version__


def _names(ranks: Sequence[int]) -> str:
    words = [str(rank) for rank in ranks]
    return f"worker {words[0]}" if len(words) == 1 else f"workers {', '.join(words[:-1])} and {words[-1]}"


def _key_of(rank: int) -> str:
    return f"fingerprint {rank}"


def _seal(key: bytes, rank: int, text: bytes) -> str:
    return code(key, f"{_key_of(rank)} ".encode(), text).hex()


def _sealed(fingerprint: RunFingerprint, rank: int, key: bytes) -> str:
    text = json.dumps(asdict(fingerprint), sort_keys=True)
    return _seal(key, rank, text.encode()) + text


def _read(value: bytes, rank: int, key: bytes) -> dict[str, object] | None:
    """The fields of worker `rank`'s fingerprint; None where its seal was not made with this run's token."""
    seal, text = value[:32], value[32:]
    if len(value) > _LONGEST or not hmac.compare_digest(seal, _seal(key, rank, text).encode()):
        return None
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _difference(rank: int, theirs: dict[str, object], first: dict[str, object]) -> str:
    """How worker `rank` differs from worker 0, in one line; '' where it does not."""
    if theirs == first:
        return ""
    name = f"worker {rank}"
    if theirs.get("version") != first.get("version"):
        return (
            f"{name} runs shoestring {theirs.get('version')} and worker 0 runs {first.get('version')}: "
            "all workers of a run need the same version"
        )
    if theirs.get("workers") != first.get("workers"):
        return f"{name} was started for a run of {theirs.get('workers')} workers, worker 0 for one of {first.get('workers')}"
    if theirs.get("start") != first.get("start"):
        return f"{name} starts {theirs.get('start')}, worker 0 {first.get('start')}"
    for field, text in DIFFERENCES.items():
        if theirs.get(field) != first.get(field):
            here, there = (f"{fields.get(field)!s:.8}" or "none" for fields in (theirs, first))
            return f"{name} {text} than worker 0 (fingerprints {here} and {there})"
    return f"{name} sends a fingerprint of other fields than worker 0: all workers of a run need the same version"


class _Admission:
    """One worker's view of which workers have arrived, and what they sent."""

    def __init__(self, fingerprint: RunFingerprint, store: dist.Store, rank: int, key: bytes) -> None:
        self.fingerprint, self.rank, self.key = fingerprint, rank, key
        self.store = dist.PrefixStore("shoestring/admission", store)
        self.store.set(_key_of(rank), _sealed(fingerprint, rank, key))

    def arrived(self, ranks: Sequence[int]) -> list[int]:
        """Which of these workers have sent their fingerprint."""
        return [rank for rank in ranks if self.store.check([_key_of(rank)])]

    def fingerprint_of(self, rank: int) -> dict[str, object] | None:
        """What an arrived worker sent; None where it does not know the run's token."""
        return _read(self.store.get(_key_of(rank)), rank, self.key)

    def refuse(self, rank: int) -> NoReturn:
        raise UsageError(f"worker {rank} does not know this run's token")

    def wait_for_all(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        missing, first = list(range(self.fingerprint.workers)), None
        while missing:
            # compared with worker 0 alone, so that all workers find the same one at fault
            for rank in self.arrived(missing if first is not None else [0]):
                fields = self.fingerprint_of(rank)
                if rank == 0:
                    if fields is None:
                        self.refuse(self.rank)
                    first = fields
                    self._compare(self.rank, asdict(self.fingerprint), first)
                elif fields is None:
                    self.refuse(rank)
                else:
                    assert first is not None
                    self._compare(rank, fields, first)
                missing.remove(rank)
            if missing and time.monotonic() > end:
                absent = [rank for rank in missing if not self.arrived([rank])]
                raise ShoestringError(f"{_names(absent or missing)} did not arrive within {timeout:g} s")
            if missing:
                time.sleep(_POLL)

    def _compare(self, rank: int, theirs: dict[str, object], first: dict[str, object]) -> None:
        line = _difference(rank, theirs, first)
        if line:
            raise UsageError(line)

    def leave(self) -> None:
        """Worker 0's process may hold the store: it stays until all have read, late ones too."""
        self.store.add("read", 1)
        end = time.monotonic() + LINGER
        while self.rank == 0 and self.store.add("read", 0) < self.fingerprint.workers and time.monotonic() < end:
            time.sleep(_POLL)


def admit(fingerprint: RunFingerprint, store: dist.Store, *, rank: int, key: bytes, timeout: float) -> None:
    """Return once all `fingerprint.workers` workers have put the same fingerprint into the store, sealed with the run's key.

    The seal covers the rank, so that a copied fingerprint is of no use. It says who may join, and hides nothing. Who
    reaches the store without the token can still hinder a run, by writing nonsense there.

    store: one that all workers reach, as `torch.distributed.TCPStore`; used once, or under another prefix each time.
    rank: this worker.
    key: `frame.derive_key` of the token; with b'' anybody's fingerprint is believed.
    timeout: seconds to wait for all to arrive.

    Raises: UsageError where anything differs, in the same words at every worker as far as their views agree; ShoestringError
    with the names of those that did not arrive in time, or where the store is gone.
    """
    if not 0 <= rank < fingerprint.workers:
        raise UsageError(f"worker {rank} of a run of {fingerprint.workers} workers: ranks are counted from 0")
    try:
        admission = _Admission(fingerprint, store, rank, key)
        try:
            admission.wait_for_all(timeout)
        finally:
            admission.leave()
    except dist.DistError as error:
        raise ShoestringError(
            "the store that the workers share is gone: worker 0, or what started it, has ended"
        ) from error
