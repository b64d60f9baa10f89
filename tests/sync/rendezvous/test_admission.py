"""Admission: workers that differ refuse each other, in the same words, and nobody waits for ever."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist

from shoestring import __version__
from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.rendezvous import admission
from shoestring.sync.rendezvous.admission import RunFingerprint, admit
from shoestring.sync.transport.frame import derive_key

KEY, OTHER = derive_key("the run's"), derive_key("a stranger's")
ALIKE = RunFingerprint(workers=3, recipe="aa11bb22cc33", model="1234567890", data="feedbeef")


@pytest.fixture(autouse=True)
def _short_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LINGER", 0.3)  # some who come here never read


def admit_all(
    fingerprints: Sequence[RunFingerprint | None],
    keys: Sequence[bytes] = (KEY,) * 8,
    timeout: float = 5.0,
    store: dist.Store | None = None,
) -> list[ShoestringError | None]:
    """What each worker ends with; None: admitted. Workers without a fingerprint do not come."""
    store = store or dist.HashStore()
    ends: list[ShoestringError | None] = [None] * len(fingerprints)

    def worker(rank: int, fingerprint: RunFingerprint) -> None:
        try:
            admit(fingerprint, store, rank=rank, key=keys[rank], timeout=timeout)
        except ShoestringError as error:
            ends[rank] = error

    threads = [
        threading.Thread(target=worker, args=(rank, fingerprint))
        for rank, fingerprint in enumerate(fingerprints)
        if fingerprint is not None
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a worker hangs"
    return ends


def _lines(ends: Sequence[ShoestringError | None]) -> list[str]:
    assert all(isinstance(end, UsageError) for end in ends), ends
    return [str(end) for end in ends]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("key", [KEY, b""])
def test_workers_alike_are_admitted(workers: int, key: bytes) -> None:
    fingerprint = replace(ALIKE, workers=workers)
    assert admit_all([fingerprint] * workers, [key] * workers) == [None] * workers


@pytest.mark.parametrize(
    ("odd", "line"),
    [
        (
            replace(ALIKE, version="0.0.9"),
            f"worker 2 runs shoestring 0.0.9 and worker 0 runs {__version__}: all workers of a run need the same version",
        ),
        (
            replace(ALIKE, recipe="ffee00112233", data="00"),
            "worker 2 trains by another recipe than worker 0 (fingerprints ffee0011 and aa11bb22)",
        ),
        (replace(ALIKE, model=""), "worker 2 has another model than worker 0 (fingerprints none and 12345678)"),
        (
            replace(ALIKE, data="cafecafecafe"),
            "worker 2 reads another corpus or tokenizer than worker 0 (fingerprints cafecafe and feedbeef)",
        ),
        (
            replace(ALIKE, start="from the checkpoint of step 8", recipe="00"),
            "worker 2 starts from the checkpoint of step 8, worker 0 anew",
        ),
        (replace(ALIKE, workers=4), "worker 2 was started for a run of 4 workers, worker 0 for one of 3"),
    ],
)
def test_a_difference_stops_every_worker_with_one_line(odd: RunFingerprint, line: str) -> None:
    start = time.monotonic()
    assert _lines(admit_all([ALIKE, ALIKE, odd])) == [line] * 3
    assert time.monotonic() - start < 3


def test_who_has_another_token_is_named_by_all() -> None:
    line = "worker 2 does not know this run's token"
    assert _lines(admit_all([ALIKE] * 3, [KEY, KEY, OTHER])) == [line] * 3
    assert _lines(admit_all([ALIKE] * 3, [KEY, KEY, b""])) == [line] * 3
    assert (
        _lines(admit_all([replace(ALIKE, workers=2)] * 2, [KEY, OTHER]))
        == ["worker 1 does not know this run's token"] * 2
    )


def test_without_a_token_the_difference_is_found_all_the_same() -> None:
    lines = _lines(admit_all([ALIKE, replace(ALIKE, model="0")], [b"", b""], timeout=2))
    assert lines == ["worker 1 has another model than worker 0 (fingerprints 0 and 12345678)"] * 2


def test_who_did_not_come_is_named() -> None:
    fingerprint = replace(ALIKE, workers=4)
    start = time.monotonic()
    ends = admit_all([fingerprint, None, fingerprint, None], timeout=0.3)
    assert [str(end) for end in ends if end] == ["workers 1 and 3 did not arrive within 0.3 s"] * 2
    assert not any(isinstance(end, UsageError) for end in ends)
    (end,) = [end for end in admit_all([None, replace(ALIKE, workers=2)], timeout=0.2) if end]
    assert str(end) == "worker 0 did not arrive within 0.2 s"
    assert time.monotonic() - start < 2


def test_a_difference_is_found_before_the_last_has_come() -> None:
    start = time.monotonic()
    assert "another model" in _lines(admit_all([ALIKE, replace(ALIKE, model="0")], timeout=30))[0]
    assert time.monotonic() - start < 2


def test_another_workers_fingerprint_is_of_no_use() -> None:
    store = dist.HashStore()
    fingerprint = replace(ALIKE, workers=2)
    admitted = admit_all([fingerprint, fingerprint], store=store)
    assert admitted == [None, None]
    copied = store.get("shoestring/admission/fingerprint 1")
    again = dist.HashStore()
    again.set("shoestring/admission/fingerprint 1", copied.decode())
    assert admit_all([fingerprint, None], store=again) == [None, None]  # the seal is the one of worker 1, as it must be
    stolen = dist.HashStore()
    stolen.set("shoestring/admission/fingerprint 2", copied.decode())
    ends = admit_all([ALIKE, ALIKE, None], store=stolen)
    assert _lines(ends[:2]) == ["worker 2 does not know this run's token"] * 2


@pytest.mark.parametrize("nonsense", ["", "x" * 20, "0" * 32 + "{}", "y" * 100_000])
def test_nonsense_in_the_store_is_a_stranger(nonsense: str) -> None:
    store = dist.HashStore()
    store.set("shoestring/admission/fingerprint 1", nonsense)
    (end, _) = admit_all([replace(ALIKE, workers=2), None], store=store)
    assert str(end) == "worker 1 does not know this run's token"


def test_a_store_that_is_gone_is_said_so() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=2))
    del server
    with pytest.raises(ShoestringError, match="the store that the workers share is gone"):
        admit(replace(ALIKE, workers=2), client, rank=1, key=KEY, timeout=2)


def test_a_rank_outside_the_run_is_refused() -> None:
    with pytest.raises(UsageError, match="worker 3 of a run of 3 workers"):
        admit(ALIKE, dist.HashStore(), rank=3, key=KEY, timeout=1)
