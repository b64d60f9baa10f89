"""A run whose workers die, freeze, come late and come back: what all hold alike, and where every token went."""

import copy
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted import Given, Pair, Script, together
from torch import Tensor
from toy_run import EVERY, SEQUENCES, TOKENS, Toy, ToyRun

from shoestring.errors import ShoestringError, UsageError
from shoestring.optim.state import flatten_state
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.elastic.loop import ATTEMPTS, NOBODY_FINITE, ElasticLoop, RoundAttempt, RunOver
from shoestring.sync.elastic.tally import Tally, Work
from shoestring.sync.feedback import Held
from shoestring.sync.fragments import Fragments
from shoestring.train.elastic.inner import InnerState


def alone(*words: str, state: Any = None, **more: Any) -> tuple[Toy, ElasticLoop]:
    toy = Toy()
    elastic = ElasticLoop(toy.outer(), "me", sequences=SEQUENCES, inner=InnerState(toy.inner), **more)
    link: Any = partial(Script, words, state=state)
    elastic.connect(link)
    return toy, elastic


def period(toy: Toy, elastic: ElasticLoop, steps: int = EVERY) -> None:
    for _ in range(steps):
        start = elastic.tally.start_of(elastic.rank, elastic.outer.steps, SEQUENCES)
        toy.train_on(range(start, start + SEQUENCES))
        elastic.step(SEQUENCES * TOKENS, 3)


def everything(toy: Toy, elastic: ElasticLoop) -> dict[str, Tensor]:
    tensors, _ = elastic.outer.state_dict()
    return {name: tensor.clone() for name, tensor in tensors.items()} | {
        f"local.{name}": parameter.detach().clone() for name, parameter in toy.named_parameters()
    }


@pytest.mark.parametrize("word", ["lost", "damaged", "no"])
def test_an_abandoned_round_leaves_no_trace_and_the_next_one_has_its_work(word: str) -> None:
    calm, troubled = alone(), alone("", "", word, word, "")
    kept: list[dict[str, Tensor]] = []
    troubled[1].record = lambda attempt: kept.append(everything(*troubled))
    for _ in range(3):
        for toy, elastic in (calm, troubled):
            elastic.run_round()
            period(toy, elastic)
    before = everything(*troubled)
    assert len(kept) == 5
    for _, elastic in (calm, troubled):
        elastic.run_round()
    assert calm[1].tally.tokens == troubled[1].tally.tokens == 3 * EVERY * SEQUENCES * TOKENS
    after = [everything(*each) for each in (calm, troubled)]
    assert after[0].keys() == after[1].keys()
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])
    # the two rounds that failed came after the second period
    assert all(torch.equal(kept[2][name], kept[3][name]) for name in kept[2])
    assert not torch.equal(kept[3]["global.weight"], kept[4]["global.weight"])
    assert not torch.equal(before["global.weight"], after[0]["global.weight"])


def alike(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    (first, record), (second, theirs) = flatten_state(one), flatten_state(other)
    return record == theirs and all(torch.equal(first[name], second[name]) for name in first)


def test_who_takes_over_the_state_has_lost_its_work_and_adds_nothing() -> None:
    donor = alone()
    donor[1].run_round()
    period(*donor)
    donor[1].run_round()
    period(*donor)  # it is about to hold the next round, as its peers are
    tensors, values = donor[1].offer()
    state = {name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(values)

    toy, elastic = alone("", "heal", "no", "", state=state)
    elastic.run_round()
    period(toy, elastic, 3)
    assert not alike(toy.inner, donor[0].inner)
    attempt = elastic.run_round()  # healed; this very round is committed, with nothing in it
    assert attempt.healed
    assert attempt.contributed == ()
    assert alike(toy.inner, donor[0].inner), "with empty moments its next steps would be others"
    assert elastic.outer.residuals is not None
    assert not elastic.outer.residuals.tensors
    assert elastic.tally.tokens == EVERY * SEQUENCES * TOKENS
    assert elastic.outer.steps == elastic.tally.begun == 2 * EVERY
    assert elastic.tally.sequences == 2 * EVERY * SEQUENCES
    assert all(torch.equal(elastic.outer.weights[name], state[0][f"global.{name}"]) for name in elastic.outer.weights)
    assert all(torch.equal(parameter, elastic.outer.weights[name]) for name, parameter in toy.named_parameters())

    period(toy, elastic)
    assert elastic.run_round().contributed == (0,)
    assert elastic.tally.credited["me"] == Work(2 * EVERY * SEQUENCES * TOKENS, 2 * EVERY * 3)


def two(held: Held = "accumulator") -> tuple[list[Toy], list[ElasticLoop], list[list[RoundAttempt]]]:
    """Two members of a run that has just begun, what they train, and the attempts at rounds that each has seen."""
    pair, toys, seen = Pair(), [Toy(), Toy()], [list[RoundAttempt](), list[RoundAttempt]()]
    both = [
        ElasticLoop(toy.outer(held), name, sequences=SEQUENCES, inner=InnerState(toy.inner), record=record.append)
        for toy, name, record in zip(toys, "ab", seen, strict=True)
    ]
    for rank, elastic in enumerate(both):
        elastic.connect(lambda rank=rank, **given: pair.of(rank, **given))
    together(*(elastic.run_round for elastic in both))
    return toys, both, seen


def test_weights_that_hold_what_was_lost_do_so_through_rounds_without_work_and_checkpoints() -> None:
    toys, both, _ = two("weights")

    def far(worker: int) -> torch.Tensor:
        return (both[worker].outer.weights["weight"] - toys[worker].weight).detach()

    for toy, elastic in zip(toys, both, strict=True):
        period(toy, elastic)
    together(*(elastic.run_round for elastic in both))
    first = [far(worker) for worker in range(2)]
    assert all(each.abs().max() > 0 for each in first)
    period(toys[0], both[0])  # the second comes back with the state of that round, and nothing to add
    tensors, values = both[1].save(residuals=True)
    with torch.no_grad():
        toys[1].weight.zero_()
    both[1].outer.join(tensors, values["outer"])
    torch.testing.assert_close(far(1), first[1], rtol=0, atol=1e-6)
    together(*(elastic.run_round for elastic in both))
    torch.testing.assert_close(far(1), first[1], rtol=0, atol=1e-6)
    assert not torch.equal(far(0), first[0])


def spoil(toy: Toy) -> None:
    with torch.no_grad():
        toy.weight[0, 0] = float("nan")


def test_a_worker_whose_weights_are_not_finite_is_left_out_and_named_and_goes_on_from_the_global_ones() -> None:
    toys, both, seen = two()
    for toy, elastic in zip(toys, both, strict=True):
        period(toy, elastic)
    spoil(toys[1])
    together(*(elastic.run_round for elastic in both))
    for attempts in seen:
        assert (attempts[-1].ids, attempts[-1].contributed, attempts[-1].dropped) == (("a", "b"), (0,), (1,))
        assert attempts[-1].damaged == ()
        assert attempts[-1].committed
    assert both[1].tally.credited == {"a": Work(EVERY * SEQUENCES * TOKENS, 3 * EVERY)}
    assert not toys[1].inner.state
    assert toys[0].inner.state
    assert all(torch.equal(weight, both[0].outer.weights[name]) for name, weight in toys[1].named_parameters())


def test_where_nobody_has_a_finite_pseudo_gradient_all_say_so_and_end() -> None:
    toys, both, seen = two()
    for toy, elastic in zip(toys, both, strict=True):
        period(toy, elastic)
        spoil(toy)

    def ended(elastic: ElasticLoop) -> str:
        with pytest.raises(ShoestringError) as error:
            elastic.run_round()
        return str(error.value)

    said = together(*(lambda elastic=elastic: ended(elastic) for elastic in both))
    assert said == ["this worker's pseudo-gradient is not finite, and no other worker has one"] * 2
    for attempts in seen:
        assert len(attempts) == 2
        assert (attempts[-1].why, attempts[-1].dropped, attempts[-1].damaged) == (NOBODY_FINITE, (0, 1), ())
    assert both[0].tally.tokens == 0


def test_what_came_damaged_is_named() -> None:
    _, elastic = alone("damaged", "")
    attempts: list[RoundAttempt] = []
    elastic.record = attempts.append
    elastic.run_round()
    assert [(each.why, each.damaged, each.dropped) for each in attempts] == [
        ("a message was damaged", (0,), ()),
        ("", (), ()),
    ]


def test_bytes_of_an_exchange_that_failed_count_too_and_are_told_with_the_next_round() -> None:
    toy, elastic = alone("", "lost", "")
    attempts: list[RoundAttempt] = []
    elastic.record = attempts.append
    elastic.run_round()
    period(toy, elastic)
    elastic.run_round()
    first, lost, last = (attempt.sent for attempt in attempts)
    assert 0 < lost < last
    assert (elastic.tally.sent, elastic.unreported) == (first + lost, last)


def test_a_run_that_is_over_takes_nobody_in() -> None:
    _, elastic = alone(over=lambda: True)
    with pytest.raises(RunOver):
        elastic.run_round()


def test_a_link_that_never_works_ends_the_worker() -> None:
    _, elastic = alone(*["damaged"] * ATTEMPTS)
    with pytest.raises(ShoestringError, match="in a row were abandoned, the last as a message was damaged"):
        elastic.run_round()


@pytest.mark.parametrize("options", [{"overlap": 1}, {"fragments": Fragments("strided", 2)}])
def test_only_whole_models_without_overlap(options: dict[str, Any]) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    with pytest.raises(UsageError, match="need workers that stay"):
        ElasticLoop(DiLoCo(model, **options), "me", sequences=1, inner=InnerState(torch.optim.SGD(model.parameters())))


def test_one_that_comes_back_with_the_state_of_the_last_round_counts_the_steps_of_the_others() -> None:
    toys, both, _ = two()
    period(toys[0], both[0])  # the other one was killed and came back with its checkpoint: it has no steps to show
    together(*(elastic.run_round for elastic in both))
    assert both[0].tally == both[1].tally
    assert both[1].outer.steps == EVERY
    assert both[0].tally.sequences == EVERY * 2 * SEQUENCES
    assert both[0].tally.credited == {"a": Work(EVERY * SEQUENCES * TOKENS, 3 * EVERY)}
    for toy, elastic in zip(toys, both, strict=True):
        period(toy, elastic)
    together(*(elastic.run_round for elastic in both))
    assert both[0].save()[1]["outer"] == both[1].save()[1]["outer"]
    assert all(torch.equal(both[0].outer.weights[name], both[1].outer.weights[name]) for name in both[0].outer.weights)


def test_the_clock_of_the_run_counts_exchanges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]

    class Slow(Script):
        def exchange(self, *given: Any, **more: Any) -> Given:
            now[0] += 3.0
            return super().exchange(*given, **more)

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr("shoestring.sync.elastic.loop.time", clock)
    toy = Toy()
    elastic = ElasticLoop(toy.outer(), "me", sequences=SEQUENCES, inner=InnerState(toy.inner), since=990.0)
    link: Any = partial(Slow, ["", "no", "lost", ""])
    elastic.connect(link)
    for _ in range(3):
        elastic.run_round()
        period(toy, elastic)
        now[0] += 2.0
    assert elastic.seconds == now[0] - 990.0
    assert now[0] > 1000.0 + 5 * 3.0 + 3 * 2.0


@pytest.mark.parametrize("late", [0.4, 30.0])
def test_a_clock_that_is_behind_is_set_and_the_run_is_no_faster_for_it(
    late: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr("shoestring.sync.elastic.loop.time", clock)
    pair, toys = Pair(), [Toy(), Toy()]
    first, second = (
        ElasticLoop(toy.outer(), name, sequences=SEQUENCES, inner=InnerState(toy.inner), since=since)
        for toy, name, since in zip(toys, "ab", (950.0, 950.0 + late), strict=True)
    )
    for rank, elastic in enumerate((first, second)):
        elastic.connect(lambda rank=rank, **given: pair.of(rank, **given))
    for _ in range(4):
        together(first.run_round, second.run_round)
        now[0] += 2.0
    assert first.seconds == now[0] - 950.0
    assert second.seconds == pytest.approx(now[0] - 950.0 - (late if late < 1 else 0.0))
    assert first.tally.seconds == second.tally.seconds == now[0] - 952.0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=8), st.integers(1, 3))
def test_every_sequence_is_handed_out_once_and_in_order(rounds: list[tuple[int, int]], count: int) -> None:
    """rounds: (members of the next period, inner steps of it)."""
    tally, step = Tally(), 0
    seen: list[Any] = []
    for size, steps in rounds:
        tally.commit(step=step, count=count, ids=[str(r) for r in range(size)], added={}, seconds=0.0)
        for _ in range(steps):
            for rank in range(size):
                start = tally.start_of(rank, step, count)
                seen += range(start, start + count)
            step += 1
    assert seen == list(range(len(seen)))
    tally.commit(step=step, count=count, ids=["0"], added={}, seconds=0.0)
    assert tally.sequences == len(seen)


@given(st.dictionaries(st.text("ab", max_size=3), st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3))
def test_a_tally_is_what_it_says(credited: dict[str, tuple[int, int]]) -> None:
    works = {name: Work(*work) for name, work in credited.items()}
    tally = Tally(3, 2, 7, 8, 9, 1.5, works)
    assert Tally.of(tally.plain()) == tally
    with pytest.raises(ShoestringError, match="damaged"):
        Tally.of({**tally.plain(), "credited": [1]})


@pytest.fixture
def toy_run(tmp_path: Path) -> Iterator[ToyRun]:
    run = ToyRun(tmp_path, 3)
    yield run
    run.close()


def test_a_killed_a_frozen_and_a_late_worker_end_with_the_same_weights_and_every_token_accounted(
    toy_run: ToyRun,
) -> None:
    per_period = EVERY * SEQUENCES
    toy_run.until(1, 3 * per_period + 1)
    toy_run.kill(1)
    toy_run.until(0, 6 * per_period)
    toy_run.restart(1)  # with nothing: it takes over the run's state
    before = len(toy_run.trained(1))
    toy_run.until(1, before + 2 * per_period)
    toy_run.freeze(2)
    frozen = len(toy_run.trained(2))
    toy_run.until(0, len(toy_run.trained(0)) + 3 * per_period)  # the others go on without it
    toy_run.thaw(2)
    toy_run.until(2, frozen + 3 * per_period)
    toy_run.running[3] = toy_run.start(3)  # one that was never expected
    toy_run.until(3, per_period)

    results = toy_run.results()
    assert len(results) == 4
    weights, tally, attempts = results[0]
    for theirs, counts, _ in results:
        assert theirs == weights
        assert counts == tally
    # at the end a period is under way; worker 1 was killed in one, worker 2 frozen in one or as it waited
    lost = {0: 1, 1: 2, 2: 2, 3: 1}
    for number, periods in lost.items():
        trained = len(toy_run.trained(number)) * TOKENS
        discarded = trained - tally["credited"][f"worker{number}"][0]
        assert 0 <= discarded <= periods * per_period * TOKENS
        assert discarded > 0 or number != 1
    assert sum(tokens for tokens, _ in tally["credited"].values()) == tally["tokens"]
    committed = [attempt for attempt in attempts if attempt.committed]
    assert sum(attempt.added for attempt in committed) == tally["tokens"]
    assert {len(attempt.ids) for attempt in committed} == {2, 3, 4}
