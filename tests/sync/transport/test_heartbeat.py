"""When a worker counts as frozen, without waiting for one: the looks are made by hand."""

import pytest
import torch.distributed as dist

from shoestring.sync.transport.base import PeerLost
from shoestring.sync.transport.heartbeat import Heartbeat


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
    assert [record.message for record in caplog.records] == [str(lost.value)], "it is told once, and at once"


def test_a_heartbeat_begins_the_count_anew(heartbeat: Heartbeat) -> None:
    for step in range(20):
        heartbeat._look({1: "1", 2: "1"} if step % 3 else {1: f"{step} more", 2: f"{step} more"}, passed=4)
        heartbeat.check()


def test_each_worker_is_looked_at_several_times_before_it_is_given_up() -> None:
    for timeout in (0.5, 30.0, 600.0):
        made = Heartbeat(dist.HashStore(), rank=0, size=2, timeout=timeout)
        assert made.interval <= min(timeout / 5, 5)
