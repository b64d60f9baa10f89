"""The steps of workers that come and go: when the run ends, what is reported, and what a checkpoint brings back."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from scripted import Pair, together
from torch import Tensor
from toy_run import EVERY, SEQUENCES, TOKENS, Toy

from shoestring.budget.budget import Budget
from shoestring.budget.charge import Charge
from shoestring.budget.ledger import Ledger, Totals
from shoestring.sync.elastic.loop import ElasticLoop
from shoestring.sync.elastic.tally import Work
from shoestring.train.elastic.inner import InnerState
from shoestring.train.elastic.team import ElasticTeam
from shoestring.train.vote import Vote

STEP = SEQUENCES * TOKENS


class Member:
    """A worker of a run of two, 'a' and 'b'."""

    def __init__(self, rank: int, budget: Budget, **options: Any) -> None:
        self.toy, name = Toy(), "ab"[rank]
        self.elastic = ElasticLoop(
            self.toy.outer(**options),
            name,
            sequences=SEQUENCES,
            inner=InnerState(self.toy.inner),
            record=lambda attempt: self.team.count(attempt),
        )
        self.ledger = Ledger()
        self.progress: list[float] = []
        self.team = ElasticTeam(
            SimpleNamespace(optimizer=self.toy.inner, model=self.toy),  # type: ignore[arg-type]
            self.elastic,
            self.ledger,
            budget,
            every=EVERY,
            nominal=Work(STEP, 3),
        )

    def step(self) -> None:
        start = self.elastic.tally.start_of(self.elastic.rank, self.elastic.outer.steps, SEQUENCES)
        self.toy.train_on(range(start, start + SEQUENCES))
        self.elastic.step(STEP, 3)
        self.ledger.charge(Charge(tokens=STEP, flops=3))

    def period(self) -> None:
        for _ in range(EVERY):
            self.step()

    def train(self) -> None:
        """Until the budget is spent."""
        self.team.run_round()
        while self.team.decide(0, Vote()).left >= 1:
            self.progress.append(self.team.budget.spent(self.team.spent(Totals())).progress)
            self.step()


def two(budget: str = "1Mtok", **options: Any) -> list[Member]:
    return [Member(rank, Budget.parse(budget), **options) for rank in range(2)]


def connected(members: list[Member]) -> list[Member]:
    pair = Pair()
    for rank, member in enumerate(members):
        member.elastic.connect(lambda rank=rank, **given: pair.of(rank, **given))
    return members


def test_a_pseudo_gradient_that_is_not_finite_is_counted_and_its_worker_named(said: list[str]) -> None:
    members = connected(two())
    together(*(member.team.run_round for member in members))
    for member in members:
        member.period()
    with torch.no_grad():
        members[1].toy.weight[0, 0] = float("inf")
    together(*(member.team.run_round for member in members))
    for member in members:
        assert member.team.exchanges.dropped == 1
        assert sum(member.team.exchanges.sent_by_role.values()) > 0
    assert said == ["round 1: the pseudo-gradient of worker b is not finite and was left out"] * 2
    assert [member.ledger.totals.discarded for member in members] == [0, EVERY * STEP]


@pytest.mark.parametrize("rounds", [4.0, 6.5])
def test_a_budget_in_bytes_is_that_of_all_and_is_not_overrun(rounds: float) -> None:
    first = connected(two())
    together(*(member.team.run_round for member in first))
    a_round = sum(member.elastic.transport.traffic.sent for member in first)
    limit = int(rounds * a_round)

    members = connected(two(f"{100 * EVERY * 2 * STEP}tok,{limit}B"))
    together(*(member.train for member in members))
    sent = sum(member.elastic.transport.traffic.sent for member in members)
    assert sent == int(rounds) * a_round  # the last one that there is room for was held
    for member in members:
        assert member.team.exchanges.rounds == int(rounds)
        assert member.elastic.outer.steps == member.elastic.tally.begun == (int(rounds) - 1) * EVERY
        assert member.team.counted().sent == sent
        assert member.team.spent(Totals()).sent == limit
        # a schedule of progress comes to its end with the run
        each = a_round / limit / EVERY
        backwards = [1 - (place + 1) * each for place in range(len(member.progress))]
        assert member.progress[::-1] == pytest.approx(backwards, abs=2 / limit)


def kept(member: Member) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """A checkpoint, through the bytes of its files."""
    tensors, values = member.team.state()
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return member.team.weights(), load(save(whole)), json.loads(json.dumps(values))


@pytest.mark.parametrize("average", ["gather", "scatter"])
def test_a_resumed_worker_has_the_residuals_it_had_and_goes_on_as_if_it_had_not_stopped(average: Any) -> None:
    straight = connected(two(average=average))
    together(*(member.team.run_round for member in straight))
    for _ in range(2):
        for member in straight:
            member.period()
        together(*(member.team.run_round for member in straight))
    checkpoints = [kept(member) for member in straight]

    again = two(average=average)
    for member, checkpoint in zip(again, checkpoints, strict=True):
        member.team.restore(*checkpoint)
    for member, old in zip(connected(again), straight, strict=True):
        assert member.elastic.outer.residuals is not None
        assert old.elastic.outer.residuals is not None
        had, has = old.elastic.outer.residuals, member.elastic.outer.residuals
        assert (
            has.tensors.keys()
            == had.tensors.keys()
            == {"weight"} | ({"weight@part"} if average == "scatter" else set())
        )
        assert all(torch.equal(has.tensors[name], had.tensors[name]) for name in had.tensors)
        assert has.place == had.place
        assert bool(has.tensors["weight"].any())
    together(*(member.team.run_round for member in again))  # they join the run that goes on from here
    for members in (straight, again):
        for member in members:
            member.period()
        together(*(member.team.run_round for member in members))
    for member, old in zip(again, straight, strict=True):
        ours, theirs = member.elastic.outer.weights, old.elastic.outer.weights
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_others_are_given_has_no_residuals() -> None:
    (one, other) = connected(two())
    together(one.team.run_round, other.team.run_round)
    one.period()
    other.period()
    together(one.team.run_round, other.team.run_round)
    tensors, values = one.elastic.offer()
    assert not [name for name in tensors if name.startswith("residual.")]
    assert "parts" not in values["outer"]
    other.elastic.load(tensors, values)
    assert other.elastic.outer.residuals is not None
    assert not other.elastic.outer.residuals.tensors
