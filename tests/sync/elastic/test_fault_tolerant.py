"""Workers that die, freeze, come late and lie: the others go on, and nobody goes on with less than the whole."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import torch.distributed as dist
from churning import HEARTBEAT_TIMEOUT, TIMEOUT, Run
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.elastic.fault_tolerant import FaultTolerantTransport
from shoestring.sync.elastic.membership import QuorumRequest, run_state
from shoestring.sync.elastic.round_outcome import RoundOutcomes
from shoestring.sync.rendezvous.admission import RunFingerprint


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    started = Run()
    yield started
    started.close()


def agree(run: Run) -> tuple[int, str, float]:
    states = run.states()
    assert len(set(states)) == 1, states
    return states[0]


def test_a_round_gives_all_the_mean_of_all(run: Run) -> None:
    before = agree(run)
    for outcome in run.round(worker1="unsized"):
        assert outcome["applied"]
        assert outcome["ids"] == ("worker0", "worker1", "worker2")
        assert not outcome["healed"]
    step, _, value = agree(run)
    assert (step, value) == (before[0] + 1, before[2] + 2)


def test_lighthouse_and_store_are_reached_through_the_door_alone(run: Run) -> None:
    listening = {
        connection.laddr
        for connection in psutil.Process(run.keeper.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert len(listening) == 3


@pytest.mark.parametrize("how", ["corrupt", "longer"])
def test_what_is_not_whole_is_applied_nowhere(run: Run, how: str) -> None:
    before = agree(run)
    outcomes = run.round(worker1=how)
    assert [outcome["nones"] for outcome in outcomes] == [1, 0, 1]
    assert not any(outcome["applied"] for outcome in outcomes)
    assert agree(run) == before
    assert all(outcome["applied"] and outcome["size"] == 3 for outcome in run.round())


def test_a_killed_worker_is_missed_at_once_and_heals_when_it_is_back(run: Run) -> None:
    for number in (0, 1):
        run.workers[number].say("round")
    run.workers[2].say("round pause")
    assert run.workers[2].hear() == "opened"
    run.workers[2].kill()
    began = time.monotonic()
    lost = [run.workers[number].hear() for number in (0, 1)]
    assert time.monotonic() - began < 2
    assert all(not outcome["applied"] and "is lost" in outcome["why"] for outcome in lost)

    began = time.monotonic()
    assert [outcome["size"] for outcome in run.round(0, 1)] == [2, 2]
    assert time.monotonic() - began < HEARTBEAT_TIMEOUT + 2

    run.restart(2)
    outcomes = run.round_with(2)
    assert [outcome["healed"] for outcome in outcomes] == [False, False, True]
    assert all(outcome["applied"] and outcome["fresh"] == (2,) for outcome in outcomes)
    agree(run)


def test_a_frozen_worker_is_left_out_and_heals_when_it_goes_on(run: Run) -> None:
    for number in (0, 2):
        run.workers[number].say("round")
    run.workers[1].say("round pause")
    assert run.workers[1].hear() == "opened"
    run.workers[1].freeze()
    began = time.monotonic()
    assert all(not run.workers[number].hear()["applied"] for number in (0, 2))
    assert time.monotonic() - began < TIMEOUT + 2
    assert all(outcome["applied"] and outcome["size"] == 2 for outcome in run.round(0, 2))

    run.workers[1].thaw()
    run.workers[1].say("go on")
    left_out = run.workers[1].hear()
    assert not left_out["applied"]
    outcomes = run.round_with(1)
    assert [outcome["healed"] for outcome in outcomes] == [False, True, False]
    assert all(outcome["applied"] and outcome["size"] == 3 for outcome in outcomes)
    agree(run)


@pytest.mark.slow
def test_a_run_outlives_its_lighthouse(run: Run) -> None:
    assert all(outcome["applied"] for outcome in run.round())
    before = agree(run)
    run.darken()
    for worker in run.workers:
        worker.say("round")
    time.sleep(3)
    run.light(run.listener[1])
    run.together()
    assert agree(run)[0] > before[0]


@pytest.mark.slow
def test_fault_after_fault_leaves_all_alike(run: Run) -> None:
    for number in (2, 0, 1, 0, 2, 1):
        others = [other for other in range(3) if other != number]
        for other in others:
            run.workers[other].say("round")
        run.workers[number].say("round pause")
        assert run.workers[number].hear() == "opened"
        run.workers[number].kill()
        assert not any(run.workers[other].hear()["applied"] for other in others)
        assert all(outcome["applied"] for outcome in run.round(*others))
        run.restart(number)
        assert all(outcome["applied"] and outcome["size"] == 3 for outcome in run.round_with(number))
        agree(run)


def member(step: int, lineage: str) -> QuorumRequest:
    return QuorumRequest("", "", step, lineage, "")


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc")), min_size=1, max_size=6))
def test_a_round_goes_on_from_what_most_have_of_the_highest_step(states: list[tuple[int, str]]) -> None:
    step, lineage = run_state([member(*state) for state in states])
    counts = [states.count((step, other)) for other in "abc"]
    assert step == max(state[0] for state in states)
    assert states.count((step, lineage)) == max(counts)


@pytest.fixture(scope="module")
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


questions = iter(range(10**6))


@pytest.fixture(scope="module")
def outcomes(store: dist.TCPStore) -> list[RoundOutcomes]:
    return [RoundOutcomes(("127.0.0.1", store.port), timeout=0.1) for _ in range(4)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans() | st.just(True), min_size=2, max_size=4), st.sampled_from([0, 0, 0, 1]))
def test_there_is_one_outcome(outcomes: list[RoundOutcomes], votes: list[bool], missing: int) -> None:
    question, voters = f"question {next(questions)}", len(votes) + missing
    with ThreadPoolExecutor(len(votes)) as pool:
        cast = [
            pool.submit(each.decide, question, vote, rank, voters)
            for rank, (each, vote) in enumerate(zip(outcomes, votes, strict=False))
        ]
        found = [each.result() for each in cast]
    # a slow machine may make them wait too long for each other: then, too, it is one outcome
    assert len(set(found)) == 1
    assert found[0] is False or (all(votes) and not missing)


def test_who_votes_late_learns_the_outcome_that_was_given(store: dist.TCPStore) -> None:
    found = [RoundOutcomes(("127.0.0.1", store.port), timeout=0.1) for _ in range(2)]
    assert found[0].decide("late", True, 0, 2) is False
    assert found[1].decide("late", True, 1, 2) is False


def test_an_outcome_that_cannot_be_learnt_is_none() -> None:
    gone = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found = RoundOutcomes(("127.0.0.1", gone.port), timeout=0.5)
    assert found.decide("first", True, 0, 1) is True
    del gone
    assert found.decide("second", True, 0, 1) is None


def test_a_worker_needs_a_name_and_a_token() -> None:
    settings: dict[str, Any] = {
        "lighthouse": ("127.0.0.1", 1),
        "store": ("127.0.0.1", 1),
        "save": lambda: ({}, {}),
        "load": lambda *_: None,
    }
    fingerprint = RunFingerprint(workers=1, recipe="", model="", data="")
    with pytest.raises(UsageError, match="cannot name"):
        FaultTolerantTransport("a:b", token="t", fingerprint=fingerprint, **settings)
    with pytest.raises(UsageError, match="token"):
        FaultTolerantTransport("a", token="", fingerprint=fingerprint, **settings)
    with pytest.raises(ShoestringError, match="no lighthouse answers"):
        FaultTolerantTransport("a", token="t", fingerprint=fingerprint, timeout=0.3, **settings)
