import pytest
import torch
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.sync.transport.local import LocalGroup


def message(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_every_worker_gets_its_own_message_of_every_other() -> None:
    group = LocalGroup(3)
    pending = [
        transport.exchange([message(10 * transport.rank + to) for to in range(3)], [1] * 3, tag=0)
        for transport in group.transports
    ]
    assert all(each.done() for each in pending)
    for rank, each in enumerate(pending):
        assert [m.tolist() for m in each.result() if m is not None] == [[rank], [10 + rank], [20 + rank]]
        assert each.result() is each.result()


def test_bytes_are_those_of_frames_to_and_from_the_others() -> None:
    group = LocalGroup(3)
    sent = [[message(*range(size)) for size in (4, 5, 6)] for _ in range(3)]
    pending = [t.exchange(sent[t.rank], None, tag=0) for t in group.transports]
    for each in pending:
        each.result()
    first, last = group.transports[0].traffic, group.transports[2].traffic
    assert (first.sent, first.received) == (5 + 6 + 2 * 48, 2 * (4 + 48))
    assert (last.sent, last.received) == (4 + 5 + 2 * 48, 2 * (6 + 48))


def test_one_worker_sends_nothing() -> None:
    (alone,) = LocalGroup(1).transports
    assert [m.tolist() for m in alone.exchange([message(7)], [1], tag=0).result() if m is not None] == [[7]]
    assert (alone.traffic.sent, alone.traffic.received) == (0, 0)


def test_taking_before_all_have_posted_is_refused_and_can_be_done_later() -> None:
    first, second = LocalGroup(2).transports
    pending = first.exchange([message(1), message(2)], None, tag=0)
    assert not pending.done()
    with pytest.raises(ValueError, match=r"^driven out of step: worker 0 .* exchange 0 before worker 1 posted"):
        pending.result()
    second.exchange([message(3), message(4)], None, tag=0).result()
    assert [m.tolist() for m in pending.result() if m is not None] == [[1], [3]]


def test_exchanges_may_overtake_each_other_in_the_taking() -> None:
    first, second = LocalGroup(2).transports
    old = [t.exchange([message(t.rank)] * 2, None, tag=0) for t in (first, second)]
    new = [t.exchange([message(5 + t.rank)] * 2, None, tag=1) for t in (first, second)]
    assert [m.tolist() for m in new[0].result() if m is not None] == [[5], [6]]
    assert [m.tolist() for m in old[0].result() if m is not None] == [[0], [1]]


def test_a_message_of_another_tag_or_size_is_none() -> None:
    first, second = LocalGroup(2).transports
    theirs = second.exchange([message(1), message(2)], None, tag=8)
    assert first.exchange([message(1), message(2)], None, tag=9).result()[1] is None
    assert theirs.result()[0] is None
    ours = first.exchange([message(1)] * 2, [1, 2], tag=0)
    second.exchange([message(1)] * 2, None, tag=0)
    assert ours.result()[1] is None


def test_bad_calls() -> None:
    with pytest.raises(UsageError, match="at least one worker, not 0"):
        LocalGroup(0)
    with pytest.raises(ValueError, match="1 messages for 2 workers"):
        LocalGroup(2).transports[0].exchange([message(1)], None, tag=0)
