"""Exchanges between real processes over loopback gloo: right bytes, damage found, losses noticed in time."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.transport.base import PeerLost, Pending, Transport
from shoestring.sync.transport.distributed import DistributedTransport
from shoestring.sync.transport.frame import derive_key, seal

KEY = derive_key("the run's")
Scenario = Callable[[DistributedTransport], Any]


def message(sender: int, receiver: int, tag: int, *, most: int = 200_000) -> Tensor:
    """What a worker sends another: random bytes, as many as chance says, known to both."""
    chance = torch.Generator().manual_seed(1_000_003 * tag + 1009 * sender + receiver)
    size = int(torch.randint(0, most, (), generator=chance))
    return torch.randint(0, 256, (size,), generator=chance).to(torch.uint8)


def start(transport: Transport, tag: int, *, sized: bool = True, most: int = 200_000) -> Pending:
    me, others = transport.rank, range(transport.size)
    sizes = [message(sender, me, tag, most=most).numel() for sender in others] if sized else None
    return transport.exchange([message(me, other, tag, most=most) for other in others], sizes, tag=tag)


def right(transport: Transport, tag: int, found: Sequence[Tensor | None], *, most: int = 200_000) -> list[bool | None]:
    """Of each worker's message: whether it is what was sent, None where it did not pass."""
    expected = [message(sender, transport.rank, tag, most=most) for sender in range(transport.size)]
    return [None if each is None else torch.equal(each, due) for each, due in zip(found, expected, strict=True)]


class Unreliable(DistributedTransport):
    """Spoils what it sends under some tags of its frames (2 x tag for lengths, 2 x tag + 1 for payloads)."""

    flipped: tuple[int, ...] = ()
    absurd: tuple[int, ...] = ()
    replayed: tuple[int, ...] = ()

    def _sealed(self, payload: Tensor, tag: int) -> Tensor:
        if tag in self.absurd:
            payload = torch.full((8,), 0x7F, dtype=torch.uint8)
        if tag in self.replayed:
            return seal(payload, key=self._key, tag=tag - 2, sender=self.rank)
        frame = super()._sealed(payload, tag)
        if tag in self.flipped:
            frame[-1] ^= 0x10
        return frame


def exchanges(transport: DistributedTransport) -> dict[str, Any]:
    """All that one group of three can show, one thing after another."""
    seen: dict[str, Any] = {}
    for name, tags, sized in (("sized", range(5), True), ("unsized", range(5, 10), False)):
        seen[name] = [right(transport, tag, start(transport, tag, sized=sized).result()) for tag in tags]

    before = (transport.traffic.sent, transport.traffic.received)
    me, others = transport.rank, [other for other in range(3) if other != transport.rank]
    start(transport, 10).result()
    start(transport, 11, sized=False).result()
    sent = [message(me, other, tag).numel() for other in others for tag in (10, 11)]
    received = [message(other, me, tag).numel() for other in others for tag in (10, 11)]
    lengths = 2 * (48 + 8)
    seen["counted"] = [transport.traffic.sent - before[0], transport.traffic.received - before[1]]
    seen["travelled"] = [sum(sent) + 4 * 48 + lengths, sum(received) + 4 * 48 + lengths]
    seen["seconds"] = transport.traffic.seconds

    total = torch.tensor([float(me)])
    if me == 1:
        dist.all_reduce(total)  # the caller's own collectives go their own way, ...
    first, second = start(transport, 12, most=3_000_000), start(transport, 13)
    if me != 1:
        seen["waiting"] = [first.done(), second.done()]
        dist.all_reduce(total)  # ... and before worker 1 has come to the exchanges that the others have under way
    seen["all-reduce"] = total.item()
    seen["in flight"] = [
        right(transport, 13, second.result()),
        right(transport, 12, first.result(), most=3_000_000),
        first.done(),
    ]

    empty = [torch.empty(0, dtype=torch.uint8)] * 3
    seen["empty"] = [[each.numel() for each in transport.exchange(empty, s, tag=14).result()] for s in (None, [0] * 3)]  # type: ignore[union-attr]
    own = transport.exchange(mine := [torch.ones(3, dtype=torch.uint8)] * 3, [3] * 3, tag=16).result()[me]
    seen["own"] = own is mine[me]
    try:
        transport.exchange([torch.empty(1, dtype=torch.uint8).expand(2**30 + 1)] * 3, None, tag=17)
    except ShoestringError as error:
        seen["over the limit"] = str(error)

    spoilt = Unreliable(key=KEY, timeout=10)
    if me == 1:
        spoilt.flipped, spoilt.absurd, spoilt.replayed = (2 * 21 + 1, 2 * 23 + 1, 2 * 24), (2 * 25,), (2 * 27 + 1,)
    seen["spoilt"] = {
        tag: right(spoilt, tag, start(spoilt, tag, sized=tag not in (23, 24, 25)).result()) for tag in range(20, 29)
    }
    spoilt.close()

    stranger = DistributedTransport(key=KEY if me != 2 else derive_key("a stranger's"), timeout=10)
    seen["stranger"] = [right(stranger, tag, start(stranger, tag, sized=tag == 30).result()) for tag in (30, 31)]
    stranger.close()

    pair = dist.new_group([0, 2], backend="gloo")
    if me != 1:
        two = DistributedTransport(pair, key=KEY, timeout=10)
        seen["pair"] = [two.rank, two.size, right(two, 40, start(two, 40).result())]
        two.close()
    return seen


def _worker(rank: int, size: int, port: int, scenario: Scenario, folder: str, timeout: float) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=20))
    transport = DistributedTransport(key=KEY, timeout=timeout)
    seen = scenario(transport)
    transport.close()
    transport.close()
    dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(seen))


def group(
    scenario: Scenario, folder: Path, *, size: int = 3, timeout: float = 10
) -> tuple[list[Any], list[int | None]]:
    """What the workers of a group saw, None for one that did not end, and how their processes ended."""
    processes_of = multiprocessing.get_context("forkserver")
    processes_of.set_forkserver_preload(["torch", "torch.distributed", "pytest", DistributedTransport.__module__])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (size, store.port, scenario, str(folder), timeout)
    workers = [processes_of.Process(target=_worker, args=(rank, *arguments)) for rank in range(size)]
    for worker in workers:
        worker.start()
    ended = time.monotonic() + 50
    files = [folder / f"{rank}.json" for rank in range(size)]
    try:
        for worker in workers:
            while worker.is_alive() and time.monotonic() < ended and _state(worker.pid) != "T":
                worker.join(0.05)
    finally:
        statuses = [worker.exitcode for worker in workers]
        for worker in workers:
            worker.kill()
            worker.join()
    return [json.loads(file.read_text()) if file.exists() else None for file in files], statuses


def _state(pid: int | None) -> str:
    """'T' for a process that was stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found, statuses = group(exchanges, tmp_path_factory.mktemp("exchanges"))
    assert statuses == [0, 0, 0]
    return found


@pytest.mark.parametrize("name", ["sized", "unsized"])
def test_every_worker_gets_the_bytes_meant_for_it(seen: list[dict[str, Any]], name: str) -> None:
    for one in seen:
        assert one[name] == [[True] * 3] * 5


def test_two_exchanges_in_flight_and_a_caller_that_goes_on(seen: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(seen):
        assert one["in flight"] == [[True] * 3, [True] * 3, True]
        assert one["all-reduce"] == 3
        if rank != 1:
            assert one["waiting"] == [False, False]


def test_traffic_is_what_travelled_frames_included(seen: list[dict[str, Any]]) -> None:
    for one in seen:
        assert one["counted"] == one["travelled"]
        assert one["seconds"] > 0


def test_messages_may_be_empty_and_ones_own_is_handed_back(seen: list[dict[str, Any]]) -> None:
    for one in seen:
        assert one["empty"] == [[0, 0, 0], [0, 0, 0]]
        assert one["own"] is True


def test_a_message_over_the_limit_is_refused_where_it_is_sent(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["over the limit"] == "a message of 1073741825 bytes: the transport's limit is 1073741824"


@pytest.mark.parametrize(
    ("tag", "what"),
    [
        (21, "a flipped byte in a payload"),
        (23, "the same, of unannounced size"),
        (24, "a length under an older tag"),
        (25, "an absurd length"),
        (27, "a payload of an earlier round"),
    ],
)
def test_a_message_that_does_not_pass_is_none_and_the_next_one_passes(
    seen: list[dict[str, Any]], tag: int, what: str
) -> None:
    for rank, one in enumerate(seen):
        expected = [True, True if rank == 1 else None, True]
        assert one["spoilt"][str(tag)] == expected, what
        following = next(each for each in (22, 26, 28) if each > tag)
        assert one["spoilt"][str(following)] == [True] * 3


def test_frames_of_another_token_never_pass(seen: list[dict[str, Any]]) -> None:
    for known in seen[:2]:
        assert known["stranger"] == [[True, True, None]] * 2
    assert seen[2]["stranger"] == [[None, None, True]] * 2


def test_some_workers_can_talk_among_themselves(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["pair"] == [0, 2, [True, True]]
    assert seen[2]["pair"] == [1, 2, [True, True]]


def _lost(exchange: Callable[[], object]) -> list[Any]:
    began = time.perf_counter()
    try:
        exchange()
    except PeerLost as lost:
        return [lost.rank, str(lost), time.perf_counter() - began]
    return ["nobody was lost"]


def a_peer_is_killed(transport: DistributedTransport) -> list[Any]:
    start(transport, 0).result()
    if transport.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    pending, queued = start(transport, 1, most=8_000_000), start(transport, 2)
    first = _lost(pending.result)
    return [first, _lost(queued.result), _lost(lambda: start(transport, 3).result())]


def test_a_killed_peer_is_noticed_at_once(tmp_path: Path) -> None:
    seen, statuses = group(a_peer_is_killed, tmp_path, timeout=20)
    assert statuses == [0, 0, -signal.SIGKILL]
    for one in seen[:2]:
        for lost in one:
            assert lost[:2] == [2, "worker 2 is lost: the connection to it is closed"]
            assert lost[2] < 5
        assert one[1][2] < 0.5
        assert one[2][2] < 0.5


def a_peer_freezes(transport: DistributedTransport) -> list[Any]:
    start(transport, 0).result()
    if transport.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif transport.rank == 2:
        time.sleep(0.4)  # so that worker 0 is the first whose patience ends
    return _lost(lambda: start(transport, 1).result())


def test_a_frozen_peer_is_given_up_in_time(tmp_path: Path) -> None:
    seen, statuses = group(a_peer_freezes, tmp_path, timeout=1)
    assert statuses == [0, None, 0]
    assert seen[0][:2] == [1, "worker 1 is lost: no answer within 1 s"]
    assert seen[0][2] < 2
    assert seen[2][0] in (0, 1)  # worker 0 has given up, and closed its connections with that
    assert seen[2][2] < 2


def closed_with_more_to_do(transport: DistributedTransport) -> list[Any]:
    if transport.rank == 0:
        in_hand, queued = start(transport, 0), start(transport, 1)
        time.sleep(0.2)  # the first is in hand, and waits for a worker that will not come
        transport.close()
        return [_lost(in_hand.result), _lost(queued.result)]
    time.sleep(1.5)
    return []


def test_closing_drops_what_waits_and_waits_no_longer_than_the_timeout(tmp_path: Path) -> None:
    seen, statuses = group(closed_with_more_to_do, tmp_path, size=2, timeout=1)
    assert statuses == [0, 0]
    assert seen[0][0][:2] == [1, "worker 1 is lost: no answer within 1 s"]
    assert seen[0][1][:2] == [-1, "a worker is lost: the transport was closed before this exchange"]


def with_models_of_two_shapes(transport: DistributedTransport) -> list[Any]:
    """A loop of a user's own, whose workers were never compared: gloo would end a process at a message that is too long."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3 + transport.rank)
    try:
        with DiLoCo(model, every=1, transport=transport) as outer:
            outer.step()
    except UsageError as error:
        return [str(error)]
    return []


def test_workers_with_models_of_two_shapes_are_refused_in_one_line(tmp_path: Path) -> None:
    seen, statuses = group(with_models_of_two_shapes, tmp_path, size=2)
    assert statuses == [0, 0]
    line = "worker 1 has parameter 0 of fragment 0 = weight float32 [4, 4] and worker 0 has weight float32 [3, 4]"
    assert seen == [[f"{line}: the workers of an outer loop need the same"]] * 2


def alone(transport: DistributedTransport) -> list[Any]:
    return [right(transport, tag, start(transport, tag, sized=tag == 0).result()) for tag in (0, 1)]


def test_a_group_of_one_talks_to_itself(tmp_path: Path) -> None:
    seen, statuses = group(alone, tmp_path, size=1)
    assert (seen, statuses) == ([[[True], [True]]], [0])


def test_messages_and_sizes_are_one_a_worker() -> None:
    transport = DistributedTransport.__new__(DistributedTransport)
    transport.size = 3
    one = torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="3 workers need 3 messages"):
        transport.exchange([one, one], None, tag=0)
    with pytest.raises(ValueError, match="as many sizes"):
        transport.exchange([one, one, one], [1], tag=0)
    with pytest.raises(ValueError, match="tag -1"):
        transport.exchange([one, one, one], [1, 1, 1], tag=-1)
