"""What a process notes of its steps, on a clock that is set by hand; who is slow; and what became of the seconds."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.budget.goodput import goodput, lost_seconds
from shoestring.budget.ledger import Ledger, Totals
from shoestring.budget.stragglers import LOOKS, StragglerWatch, slow
from shoestring.budget.timeline import OWN, STEPS, STRETCHES, WINDOW, PhaseStretch, Timeline
from shoestring.report.processes import read_processes


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def noted(steps: int, step: float = 1.0) -> tuple[Ledger, Timeline]:
    """Steps of data 1, forward and backward 4 with a collective of 2 in it, optimiser 1, in units of `step` seconds."""
    clock = Clock()
    ledger, timeline = Ledger(clock=clock), Timeline(3, "there")
    ledger.timeline = timeline
    for number in range(steps):
        timeline.begin_step(number)
        with ledger.clock("data"):
            clock.now += step
        with ledger.clock("compute" if number else "start"):
            clock.now += 2 * step
            with ledger.waiting():
                clock.now += 2 * step
            clock.now += 2 * step
            with ledger.clock("compute", "optimiser"):
                clock.now += step
        with ledger.waiting():
            clock.now += step
        with ledger.clock("evaluate"), ledger.waiting():
            clock.now += 3 * step
    timeline.begin_step(steps)
    return ledger, timeline


def test_phases_are_noted_as_they_change() -> None:
    ledger, timeline = noted(2)
    second = [each for each in timeline.stretches() if each.step == 1]
    assert second == [
        PhaseStretch("data", 1, 12, 13),
        PhaseStretch("forward and backward", 1, 13, 15),
        PhaseStretch("communication", 1, 15, 17),
        PhaseStretch("forward and backward", 1, 17, 19),
        PhaseStretch("optimiser", 1, 19, 20),
        PhaseStretch("communication", 1, 20, 21),
        PhaseStretch("evaluation", 1, 21, 24),
    ]
    sums = {"data": 1, "forward and backward": 4, "communication": 3, "optimiser": 1, "evaluation": 3}
    assert timeline.steps() == [(1, sums)], "torch sets itself up in the first step, which tells nothing of later ones"
    # a wait within a step or between two is on the ledger as one; that of an evaluation, or of the start, is a part of it
    assert dict(ledger.totals.seconds) == {
        "idle": 0, "data": 2, "start": 6, "compute": 6, "sync_exposed": 4, "evaluate": 6,
    }  # fmt: skip


def test_no_more_is_kept_than_said_and_a_file_says_it_all(tmp_path: Path) -> None:
    _, timeline = noted(STRETCHES, 1e-3)
    assert (len(timeline.stretches()), len(timeline.steps())) == (STRETCHES, STEPS)
    timeline.offset, timeline.offset_error = 0.5, 1e-4
    (tmp_path / "timeline.jsonl").write_text(timeline.lines())
    (read,) = read_processes(tmp_path).each
    assert (read.rank, read.host, read.offset_error) == (3, "there", 1e-4)
    for (step, sums), (number, seconds) in zip(read.steps, timeline.steps(), strict=True):
        assert (step, sums) == (number, pytest.approx(seconds, abs=1e-6))
    shifted = timeline.stretches()[0].begin - 0.5
    assert read.stretches[0].begin == pytest.approx(shifted, abs=1e-6), "all are on the clock of rank 0"
    assert timeline.medians() == {
        "data": 0.001, "forward and backward": 0.004, "optimiser": 0.001, "communication": 0.003, "exchange": 0.0,
    }  # fmt: skip


def test_there_is_no_median_before_there_are_steps_enough() -> None:
    for steps, known in ((WINDOW, False), (WINDOW + 1, True)):
        assert bool(noted(steps)[1].medians()) is known


def work(data: float, passes: float, optimiser: float, waits: float) -> dict[str, float]:
    return dict(zip((*OWN, "communication"), (data, passes, optimiser, waits), strict=True))


EVEN = work(0.001, 0.05, 0.005, 0.02)


@pytest.mark.parametrize(
    ("each", "named"),
    [
        ([EVEN, EVEN], []),
        ([EVEN, work(0.031, 0.05, 0.005, 0.001)], [(1, "data")]),
        ([work(0.001, 0.08, 0.005, 0.001), EVEN, EVEN], [(0, "forward and backward")]),
        ([EVEN, EVEN, work(0.001, 0.05, 0.03, 0.0)], [(2, "optimiser")]),
        ([EVEN, work(0.001, 0.05, 0.005, 0.5)], []),  # it waits long: that is the others' doing
        ([EVEN, work(0.005, 0.05, 0.005, 0.02)], []),  # five times as long in a phase that is little of a step
        ([work(1e-5, 1e-4, 1e-5, 0), work(2e-5, 9e-4, 2e-5, 0)], []),  # below what is worth a word
        ([EVEN] * 6 + [work(0.001, 0.07, 0.005, 0)] * 2, [(6, "forward and backward"), (7, "forward and backward")]),
        ([EVEN, {}], []),
        ([EVEN], []),
    ],
)
def test_who_is_slow_in_its_own_work_is_told_from_who_waits(
    each: list[dict[str, float]], named: list[tuple[int, str]]
) -> None:
    assert [(one.rank, one.phase) for one in slow(dict(enumerate(each)))] == named


@given(st.lists(st.lists(st.floats(0.9, 1.1), min_size=3, max_size=3), min_size=2, max_size=9))
def test_a_tenth_more_or_less_is_nobodys_fault(noise: list[list[float]]) -> None:
    each = {
        rank: {phase: EVEN[phase] * factor for phase, factor in zip(OWN, factors, strict=True)}
        for rank, factors in enumerate(noise)
    }
    assert slow(each) == []


def test_a_straggler_is_named_once_and_after_several_looks() -> None:
    watch, late = StragglerWatch(), work(0.04, 0.05, 0.005, 0)
    look = WINDOW // 2
    for number in range(1, LOOKS):
        assert watch.look({0: EVEN, 1: late}, look * number) == []
        assert watch.look({0: EVEN, 1: late}, look * number + 1) == [], "too early for another look"
    assert watch.look({0: EVEN, 1: EVEN}, look * LOOKS) == [], "it was for a while"
    found = [watch.look({0: EVEN, 1: late}, look * (LOOKS + number)) for number in range(1, 12)]
    assert [[(one.rank, one.phase) for one in each] for each in found] == [[], [], [(1, "data")], *[[]] * 8]
    assert found[2][0].share == pytest.approx(0.039 / 0.056)


def test_goodput_tells_useful_steps_from_waiting_and_from_what_was_lost(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=clock)

    def steps(count: int) -> None:
        for _ in range(count):
            with ledger.clock("data"):
                clock.now += 1
            with ledger.clock("compute"):
                clock.now += 6
                with ledger.waiting():
                    clock.now += 3

    steps(4)
    kept = ledger.totals
    steps(2)
    ledger.write("train")
    ledger.close()
    clock.now += 50  # nobody hears of it
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=clock, since=clock.now - 20)
    ledger.passed("restart")
    with ledger.clock("start"):
        clock.now += 5
    ledger.roll_back(kept)
    steps(3)
    ledger.write("end")
    assert lost_seconds(ledger.entries) == {"compute": 12, "data": 2, "sync_exposed": 6}
    found = goodput(ledger.totals, lost_seconds(ledger.entries))
    assert (found.useful, found.waiting, found.lost, found.restarting, found.other) == (42, 21, 20, 20, 12)
    assert found.total == ledger.totals.wall_clock == 115
    assert goodput(Totals(), {}).share(1.0) == 0.0
