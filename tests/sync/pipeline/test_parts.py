"""The pieces of the pipeline by themselves: routes, averages, states, faults, accounts."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_stages import Body, adamw
from torch import nn

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.pipeline.accounts import Accounts
from shoestring.sync.pipeline.archive import pack, unpack
from shoestring.sync.pipeline.faults import draw_faults
from shoestring.sync.pipeline.part import ModelPart
from shoestring.sync.pipeline.route import ends_swapped, in_order, owner, parts_of
from shoestring.sync.pipeline.state import inherited


@given(st.integers(1, 9))
def test_every_part_has_one_owner_and_every_route_passes_each_part_once(stages: int) -> None:
    assert sorted(part for stage in range(stages) for part in parts_of(stage, stages)) == in_order(stages)
    assert [owner(stage + 1, stages) for stage in range(stages)] == list(range(stages))
    if stages in (1, 3):
        with pytest.raises(UsageError):
            ends_swapped(stages)
        return
    route = ends_swapped(stages)
    assert sorted(route) == in_order(stages)
    assert (route[0], route[-1]) == (0, stages + 1)
    assert route[1:3] == [2, 1]
    assert route[-3:-1] == [stages, stages - 1]
    assert route[3:-3] == in_order(stages)[3:-3]


@given(st.lists(st.just(0.0) | st.floats(1e-6, 1e3), min_size=2, max_size=3))
def test_the_average_is_weighted_as_the_slow_way_says(weights: list[float]) -> None:
    states = [{"w": torch.randn(3, 4)} for _ in weights]
    got = inherited(states, weights)
    used = weights if sum(weights) else [1.0] * len(weights)
    for row in range(3):
        for column in range(4):
            slow = sum(w * float(s["w"][row, column]) for w, s in zip(used, states, strict=True)) / sum(used)
            assert float(got["w"][row, column]) == pytest.approx(slow, rel=1e-4, abs=1e-5)


def test_stages_of_different_shapes_are_not_averaged() -> None:
    with pytest.raises(UsageError, match=r"'weight\.w' is \(2,\) and \(3,\)"):
        inherited([{"weight.w": torch.zeros(2)}, {"weight.w": torch.zeros(3)}], [1, 1])


def step(part: ModelPart, seed: int) -> None:
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    left = part.forward(0, x)
    for _ in part.backward(0, torch.ones_like(left)):
        pass
    part.measure()
    part.apply(1.0, 0.5)


def test_a_part_that_was_packed_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    part = ModelPart(Body(), adamw)
    part.lr_scale = 1.1
    step(part, 1)
    content = pack({3: part})
    step(part, 2)
    fresh = ModelPart(Body(), adamw)
    unpack(content, {3: fresh}, "file")
    assert fresh.lr_scale == 1.1
    step(fresh, 2)
    assert fresh.squared_norm == part.squared_norm > 0
    for ours, theirs in zip(part.module.parameters(), fresh.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ShoestringError, match="no part 4"):
        unpack(content, {4: fresh}, "file")
    with pytest.raises(ShoestringError, match="file is damaged"):
        unpack(content[:50], {3: fresh}, "file")
    with pytest.raises(ShoestringError, match="another model's"):
        unpack(content, {3: ModelPart(nn.Linear(8, 8), adamw)}, "file")


def test_gradients_are_added_in_the_order_of_micro_batches_however_they_come() -> None:
    torch.manual_seed(0)
    module = Body()
    xs = [torch.randn(2, 3, 8) for _ in range(4)]
    grads = [torch.randn(2, 3, 8) * 10.0**k for k in range(4)]
    sums = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        part = ModelPart(copy.deepcopy(module), adamw)
        for micro in order:
            part.forward(micro, xs[micro])
        turns = [turn for micro in order for turn, _ in part.backward(micro, grads[micro])]
        assert turns == [0, 1, 2, 3]
        sums.append([p.grad.clone() for p in part.module.parameters() if p.grad is not None])
    assert all(map(torch.equal, *sums))


def test_faults_come_as_often_as_the_rate_says_and_a_longer_run_begins_as_a_shorter_one() -> None:
    faults = draw_faults(0.1, hour=10.0, seconds=1e5, stages=range(4), seed=3)
    assert faults == sorted(faults)
    for stage in range(4):
        struck = {int(fault.at / 10) for fault in faults if fault.stage == stage}
        # 10,000 hours, each struck with probability 0.1: six standard deviations
        assert abs(len(struck) / 1e4 - 0.1) < 6 * math.sqrt(0.09 / 1e4)
    short = draw_faults(0.1, hour=10.0, seconds=2e3, stages=range(4), seed=3)
    assert short == faults[: len(short)]
    assert draw_faults(0.1, hour=10.0, seconds=2e3, stages=range(4), seed=4) != short
    assert draw_faults(0.1, hour=10.0, seconds=2e3, stages=[1], seed=3) == [f for f in short if f.stage == 1]
    assert draw_faults(0.0, hour=10.0, seconds=2e3, stages=range(4), seed=3) == []
    with pytest.raises(UsageError):
        draw_faults(1.0, hour=10.0, seconds=1.0, stages=[1], seed=0)


@given(st.integers(0, 20), st.floats(0, 30))
def test_neighbours_do_not_fail_within_the_gap(seed: int, gap: float) -> None:
    faults = draw_faults(0.5, hour=10.0, seconds=300.0, stages=range(4), seed=seed, gap=gap)
    for number, fault in enumerate(faults):
        for later in faults[number + 1 :]:
            assert later.at - fault.at >= gap or abs(later.stage - fault.stage) > 1


def test_tokens_are_useful_or_discarded() -> None:
    accounts = Accounts()
    for tokens in (10, 20, 30):
        accounts.tokens_seen += tokens
        accounts.stand(tokens, 1.0)
    accounts.tokens_seen += 40
    accounts.discard(40, 0.5)
    accounts.roll_back(1)
    assert (accounts.tokens_useful, accounts.tokens_discarded, accounts.tokens_seen) == (10, 90, 100)
    assert (accounts.seconds["useful"], accounts.seconds["discarded"]) == (1.0, 2.5)
    assert accounts.goodput == 0.1
