"""Admission: before they train together, workers show each other what they are, and any difference stops them all."""

import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

import torch.distributed as dist

from shoestring import __version__
from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.frame import code

_POLL = 0.02
FAREWELL = 3.0
"""The most seconds that worker 0 stays for the others to read."""

_LONGEST = 4096

DIFFERENCES = {
    "recipe": "trains by another recipe",
    "model": "has another model",
    "data": "reads another corpus or tokenizer",
}
"""What a fingerprint of a passport says where it differs."""


@dataclass(frozen=True, kw_only=True)
class Passport:
    """What all workers of a run must have alike.

    workers: how many the run has. start: what its first step goes on from, in words that follow 'starts'. recipe, model, data:
    fingerprints in hex, made by the caller, of the recipe, of the model's shape, and of the corpus and its tokenizer; ''
    where there is nothing to compare. version: of the program.
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


def _sealed(passport: Passport, rank: int, key: bytes) -> str:
    text = json.dumps(asdict(passport), sort_keys=True)
    return code(key, f"passport {rank} ".encode(), text.encode()).hex() + text


def _read(value: bytes, rank: int, key: bytes) -> dict[str, object] | None:
    """The fields of worker `rank`'s passport; None where its seal is not of this run's token."""
    seal, text = value[:32], value[32:]
    if len(value) > _LONGEST or not hmac.compare_digest(
        seal, code(key, f"passport {rank} ".encode(), text).hex().encode()
    ):
        return None
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _difference(rank: int, theirs: dict[str, object], first: dict[str, object]) -> str:
    """What sets worker `rank` apart from worker 0, in one line; '' where nothing does."""
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
    return f"{name} shows a passport of other fields than worker 0: all workers of a run need the same version"


class _Gate:
    """One worker's view of who has come."""

    def __init__(self, passport: Passport, store: dist.Store, rank: int, key: bytes) -> None:
        self.passport, self.rank, self.key = passport, rank, key
        self.store = dist.PrefixStore("shoestring/admission", store)
        self.store.set(f"passport {rank}", _sealed(passport, rank, key))

    def come(self, ranks: Sequence[int]) -> list[int]:
        return [rank for rank in ranks if self.store.check([f"passport {rank}"])]

    def passport_of(self, rank: int) -> dict[str, object] | None:
        return _read(self.store.get(f"passport {rank}"), rank, self.key)

    def refuse_stranger(self, rank: int) -> NoReturn:
        raise UsageError(f"worker {rank} does not know this run's token")

    def pass_through(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        missing, first = list(range(self.passport.workers)), None
        while missing:
            # worker 0's passport is the measure, so that all workers find the same one at fault
            for rank in self.come(missing if first is not None else [0]):
                fields = self.passport_of(rank)
                if rank == 0:
                    if fields is None:
                        self.refuse_stranger(self.rank)
                    first = fields
                    self._compare(self.rank, asdict(self.passport), first)
                elif fields is None:
                    self.refuse_stranger(rank)
                else:
                    assert first is not None
                    self._compare(rank, fields, first)
                missing.remove(rank)
            if missing and time.monotonic() > end:
                absent = [rank for rank in missing if not self.come([rank])]
                raise ShoestringError(f"{_names(absent or missing)} did not come within {timeout:g} s")
            if missing:
                time.sleep(_POLL)

    def _compare(self, rank: int, theirs: dict[str, object], first: dict[str, object]) -> None:
        line = _difference(rank, theirs, first)
        if line:
            raise UsageError(line)

    def leave(self) -> None:
        """Worker 0's process may be the one that holds the store: it stays until all have read, those who come late too."""
        self.store.add("read", 1)
        end = time.monotonic() + FAREWELL
        while self.rank == 0 and self.store.add("read", 0) < self.passport.workers and time.monotonic() < end:
            time.sleep(_POLL)


def admit(passport: Passport, store: dist.Store, *, rank: int, key: bytes, timeout: float) -> None:
    """Return once all `passport.workers` workers have shown the same passport, sealed with the run's key, in the store.

    store: one that all workers reach, as `torch.distributed.TCPStore`; used once, or under another prefix each time. key:
    `frame.derive_key` of the token; with b'' anybody's passport is believed. timeout: seconds to wait for all to come.
    The seal covers the rank, so that a passport copied by a stranger is of no use. It says who may join, and hides
    nothing; somebody who reaches the store without the token can still hinder a run, by writing nonsense there.

    Raises: UsageError where anything differs, in the same words at every worker as far as their views agree; ShoestringError
    with the names of those who did not come in time, or where the store is gone.
    """
    if not 0 <= rank < passport.workers:
        raise UsageError(f"worker {rank} of a run of {passport.workers} workers: ranks are counted from 0")
    try:
        gate = _Gate(passport, store, rank, key)
        try:
            gate.pass_through(timeout)
        finally:
            gate.leave()
    except dist.DistError as error:
        raise ShoestringError(
            "the store that workers meet in is gone: worker 0, or what started it, has ended"
        ) from error
