import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from lockstep_run import HARD, INNER_LR, Run, kept
from safetensors.torch import load, save
from small_codecs import Grid, Tampered, Tower, WaitingGroup, give_gradients
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.feedback import ErrorFeedback
from shoestring.sync.flight import Round
from shoestring.sync.fragments import Fragments
from shoestring.sync.lockstep import Lockstep
from shoestring.sync.transport.base import PeerLost
from shoestring.sync.transport.local import LocalGroup


class Broken(Run):
    """A run in which some messages arrive damaged. faults: (rank, number of the exchange) where all is lost."""

    faults: set[tuple[int, int]]

    def transport(self, rank: int) -> Any:
        def change(number: int, messages: list[Tensor | None]) -> list[Tensor | None]:
            if (rank, number) in self.faults:
                return [None if other != rank else message for other, message in enumerate(messages)]
            return messages

        return Tampered(super().transport(rank), change)


@pytest.mark.parametrize("average", ["gather", "scatter"])
@pytest.mark.parametrize("overlap", [0, 1])
def test_an_abandoned_round_leaves_everything_as_it_was(average: Any, overlap: int) -> None:
    options = {**HARD, "every": 3, "fragments": Fragments(), "overlap": overlap, "average": average}
    stages = 2 if average == "gather" else 3
    Broken.faults = {(1, 1 + stages)}  # after the settings check: the first stage of the second round, at one worker
    run = Broken(3, **options).step(5 + overlap)
    assert all(r.committed for own in run.rounds for r in own)
    rounds = run.workers[0].rounds
    run.inner_step()
    before = run.state()
    flights = [list(worker.flights) for worker in run.workers]
    ended = run.lockstep.step()
    assert [(r.committed, r.damaged, r.notes) for own in ended for r in own] == [
        (False, damaged, [None] * 3) for damaged in ([], [0, 2], [])
    ]
    without = [[name for name in load(state) if not name.startswith("flight.")] for state in before]
    for old, new, names in zip(before, run.state(), without, strict=True):
        assert all(torch.equal(load(old)[name], load(new)[name]) for name in names)
    assert run.workers[0].rounds == rounds
    assert all(not worker.flights for worker in run.workers)
    assert all(flights) or overlap == 0
    # the next round holds what this one would have
    run.step(3)
    assert run.workers[0].rounds == rounds + 1
    moved = [
        w.weights["norm.weight"] - load(old)["global.norm.weight"] for w, old in zip(run.workers, before, strict=True)
    ]
    assert moved[0].abs().max() > 0
    assert torch.equal(moved[0], moved[2])


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("average", ["gather", "scatter"])
def test_a_worker_that_is_not_finite_is_dropped_reported_and_mended(overlap: int, average: Any) -> None:
    run = Run(3, every=4, overlap=overlap, average=average, feedback=ErrorFeedback(), codec=Grid())
    run.inner[1] = torch.optim.SGD(run.models[1].parameters(), lr=INNER_LR, momentum=0.9)
    run.workers[1].inner = run.inner[1]
    run.step(3)
    run.models[1].blocks[2].weight.data[0, 0] = math.nan  # type: ignore[operator]
    run.inner[1].state[run.models[1].blocks[2].weight]["momentum_buffer"][0, 0] = math.nan  # type: ignore[index]
    run.step(1 + overlap)
    for (ended,) in run.rounds[-3:]:
        assert (ended.committed, ended.participants, ended.dropped) == (True, [0, 2], [1])
    assert all(tensor.isfinite().all() for worker in run.workers for tensor in kept(worker)[0].values())
    assert all(torch.equal(run.workers[1].weights[n], p) for n, p in run.models[1].named_parameters())
    assert not any(run.inner[1].state[p] for p in run.models[1].parameters())
    run.step(8)
    for (ended,) in run.rounds[-3:]:
        assert ended.participants == [0, 1, 2]


def loop(outer: DiLoCo, rank: int, steps: int, pause: Callable[[], None]) -> list[Round]:
    """A user's own loop."""
    inner = outer.inner
    assert inner is not None
    ended = []
    with outer:
        for step in range(1, steps + 1):
            give_gradients(outer.model, rank, step)
            pause()
            inner.step()
            inner.zero_grad()
            ended += outer.step({"rank": rank})
        ended += outer.synchronise()
    return ended


def threads(
    workers: int, steps: int, pause: Callable[[], None], **options: Any
) -> tuple[list[DiLoCo], list[list[Round]]]:
    group = WaitingGroup(workers, pause)
    outers = []
    for rank in range(workers):
        model = Tower()
        inner = torch.optim.SGD(model.parameters(), lr=INNER_LR)
        outers.append(DiLoCo(model, inner, transport=group.transports[rank], **options))
    ended: list[list[Round]] = [[] for _ in range(workers)]

    def work(rank: int) -> None:
        ended[rank] = loop(outers[rank], rank, steps, pause)

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for each in running:
        each.start()
    for each in running:
        each.join(30)
    return outers, ended


@pytest.mark.parametrize("average", ["gather", "scatter"])
@pytest.mark.parametrize("overlap", [0, 2, 5])
def test_on_a_link_that_waits_the_bits_are_those_of_lock_step(overlap: int, average: Any) -> None:
    options = {**HARD, "overlap": overlap, "average": average}
    run = Run(3, **options).step(20)
    run.lockstep.synchronise()
    chance = random.Random(1)
    outers, ended = threads(3, 20, lambda: time.sleep(chance.random() * 0.004), **options)
    for outer, worker, model in zip(outers, run.workers, run.models, strict=True):
        assert save(kept(outer)[0]) == save(kept(worker)[0])
        assert kept(outer)[1] == kept(worker)[1]
        for one, other in zip(outer.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(one, other)
    assert [(r.fragment, r.step, r.notes) for r in ended[0]] == [(r.fragment, r.step, r.notes) for r in ended[2]]


def test_an_overlapped_exchange_hides_behind_the_inner_steps() -> None:
    def slowly(number: int, messages: list[Tensor | None]) -> list[Tensor | None]:
        time.sleep(0.05)
        return messages

    for overlap in (0, 1):
        link = Tampered(LocalGroup(1).transports[0], slowly)
        with DiLoCo(Tower(), every=2, overlap=overlap, transport=link) as outer:
            for _ in range(2 + overlap):
                wait([flight.running for flight in outer.flights if flight.running], timeout=20)
                ended = outer.step()
        (first,) = ended
        took = first.exposed_seconds + first.hidden_seconds  # two stages
        assert took > 0.1
        assert (first.hidden_seconds > 0.8 * took) if overlap else (first.hidden_seconds == 0)


def test_a_lost_peer_abandons_the_round_and_the_loop_can_go_on() -> None:
    class Lost(Tampered):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner, self.fail)
            self.failing = True

        def fail(self, number: int, messages: list[Tensor | None]) -> list[Tensor | None]:
            if self.failing:
                raise PeerLost(1, "no answer")
            return messages

    for overlap in (0, 2):
        link = Lost(LocalGroup(1).transports[0])
        model = Tower()
        with DiLoCo(model, every=3, overlap=overlap, transport=link, feedback=ErrorFeedback(), codec=Grid()) as outer:
            for _ in range(2 + overlap):
                outer.step()
            before = {name: weight.clone() for name, weight in outer.weights.items()}
            model.norm.weight.data += 1
            with pytest.raises(PeerLost, match="worker 1 is lost: no answer"):
                for _ in range(3):
                    outer.step()
            assert not outer.flights
            assert all(torch.equal(weight, before[name]) for name, weight in outer.weights.items())
            assert outer.residuals is not None
            assert not outer.residuals.tensors
            link.failing = False
            (ended,) = [r for _ in range(4) for r in outer.step()][:1]
            assert ended.committed
            assert not torch.equal(outer.weights["norm.weight"], before["norm.weight"])


def test_replicas_that_differ_are_found_out() -> None:
    group = LocalGroup(2)
    with ExitStack() as stack:
        one, other = (stack.enter_context(DiLoCo(Tower(), every=1, transport=t)) for t in group.transports)
        Lockstep([one, other]).step()
        other.average = "scatter"
        with pytest.raises(ShoestringError, match="some workers ended an exchange that others have not ended"):
            Lockstep([one, other]).step()
        assert not one.flights
        assert not other.flights
