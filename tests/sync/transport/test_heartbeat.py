"""When a worker counts as frozen, without waiting for one: the looks are made by hand."""

import json

import pytest
import torch.distributed as dist

from shoestring.sync.transport.base import PeerLost
from shoestring.sync.transport.heartbeat import Heartbeat, last_note, place_of, reported_lost


@pytest.fixture
def heartbeat() -> Heartbeat:
    return Heartbeat(dist.HashStore(), rank=0, size=3, timeout=10)


def test_a_worker_whose_count_stands_still_is_frozen(heartbeat: Heartbeat, caplog: pytest.LogCaptureFixture) -> None:
    for counts in ({1: "1", 2: "1"}, {1: "2", 2: "1"}, {1: "3", 2: "1"}):
        heartbeat._look(counts, passed=4)
        heartbeat.check()
    heartbeat._look({1: "4", 2: "1"}, passed=4)
    with pytest.raises(PeerLost, match="worker 2 is lost: no heartbeat for 10 s: its process is frozen") as lost:
        heartbeat.check()
    assert lost.value.rank == 2
    heartbeat._look({1: "4", 2: "1"}, passed=4)
    silent = "worker 2 is silent for 8 s: it is given up after 10 s"
    assert [record.message for record in caplog.records] == [silent, str(lost.value)], "each is told once, and at once"


def test_a_heartbeat_begins_the_count_anew(heartbeat: Heartbeat) -> None:
    for step in range(20):
        heartbeat._look({1: "1", 2: "1"} if step % 3 else {1: f"{step} more", 2: f"{step} more"}, passed=4)
        heartbeat.check()


def test_each_worker_is_looked_at_several_times_before_it_is_given_up() -> None:
    for timeout in (0.5, 30.0, 600.0):
        made = Heartbeat(dist.HashStore(), rank=0, size=2, timeout=timeout)
        assert made.interval <= min(timeout / 5, 5)


def test_a_worker_that_has_left_is_not_missed(heartbeat: Heartbeat, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        heartbeat._look({1: "left", 2: "left"}, passed=4)
        heartbeat.check()
    assert not caplog.records
    store = dist.HashStore()
    one, other = (Heartbeat(store, rank=rank, size=2, timeout=0.5) for rank in range(2))
    one.start()
    one.close()
    assert other._store.get("0") == b"left"


def test_what_a_worker_last_told_of_itself_is_in_the_line_that_gives_it_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = dist.HashStore()
    one, other = (Heartbeat(store, rank=rank, size=2, timeout=4) for rank in range(2))
    other._store.set("note 1", json.dumps({"host": "there", "phase": "data", "step": 7}))
    assert reported_lost(store) is None
    for _ in range(3):
        one._look({1: "1"}, passed=2)
    with pytest.raises(PeerLost, match="out of reach \\(there, last seen in 'data' of step 7\\)"):
        one.check()
    assert (reported_lost(store), place_of(last_note(store, 1))) == (1, "there, last seen in 'data' of step 7")


@pytest.mark.parametrize("said", ["", "[]", "{", '{"host": "a\\u001b[31m"}', '{"phase": {"deep": 1}, "step": "no"}'])
def test_a_note_that_makes_no_sense_is_shown_as_text_or_not_at_all(said: str) -> None:
    store = dist.HashStore()
    made = Heartbeat(store, rank=0, size=1, timeout=4)
    made._store.set("note 0", said)
    assert place_of(last_note(store, 0)).isprintable()
    assert last_note(store, 5) == {}
