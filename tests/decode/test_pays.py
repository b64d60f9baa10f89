"""Drafts that take longer than they save are given up, said so once, and tried again; by a clock that the test turns."""

from collections.abc import Sequence

import pytest

from shoestring.budget.charge import NOTHING, Charge
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.acceptance import Question
from shoestring.decode.pays import Pays
from shoestring.decode.row import Draft, Row
from shoestring.errors import UsageError
from tests.decode.random_models import native, one_by_one


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(pays: Pays, clock: Clock, passes: int, rows: int = 1, drafted: float = 2.0, tokens: int = 2) -> list[bool]:
    """So many passes: 1 s and a token a row without drafts, else `drafted` s and `tokens`. Returns which had drafts."""
    used = []
    for _ in range(passes):
        used.append(pays.begin(rows))
        clock.now += drafted if used[-1] else 1.0
        note = pays.end(rows * (tokens if used[-1] else 1))
        if note is not None:
            used_notes.append(note)
    return used


used_notes: list[str] = []


@pytest.fixture(autouse=True)
def notes() -> list[str]:
    used_notes.clear()
    return used_notes


def made(clock: Clock, **more: float) -> Pays:
    return Pays(window=4, windows=3, margin=0.1, pause=10, clock=clock, **more)


def test_windows_alternate_and_a_slower_drafter_is_given_up_and_tried_again(notes: list[str]) -> None:
    clock = Clock()
    pays = made(clock)
    trial = run(pays, clock, 24, drafted=3.0)
    assert trial == ([True] * 4 + [False] * 4) * 3
    assert notes == ["drafts do not pay and are switched off at 1 row: 1.5e+03 ms a token with them, 1e+03 ms without"]
    assert run(pays, clock, 10, drafted=3.0) == [False] * 10
    assert run(pays, clock, 24, drafted=3.0) == trial
    assert len(notes) == 1  # said once
    # lost twice: twice the pause; then it is faster
    assert run(pays, clock, 20) == [False] * 20
    run(pays, clock, 24, drafted=1.0)
    assert notes[1:] == ["drafts are used again at 1 row: 500 ms a token with them, 1e+03 ms without"]
    assert run(pays, clock, 10, drafted=1.0) == [True] * 10


@pytest.mark.parametrize(("drafted", "kept"), [(2.3, False), (2.1, True), (1.9, True)])
def test_small_differences_change_nothing(drafted: float, kept: bool) -> None:
    clock = Clock()
    pays = made(clock)
    run(pays, clock, 24, drafted=drafted)
    assert pays.drafting(1) == kept
    # and one that was given up comes back only where it is clearly faster
    other = made(clock)
    run(other, clock, 24, drafted=4.0)
    run(other, clock, 10)
    run(other, clock, 24, drafted=drafted)
    assert not other.drafting(1)


def test_the_first_pass_of_a_window_and_single_slow_windows_count_nothing() -> None:
    clock = Clock()
    pays = made(clock)
    for number in range(24):
        used = pays.begin(1)
        clock.now += 50.0 if number % 8 == 0 or number == 2 else 1.0
        pays.end(2 if used else 1)
    assert pays.drafting(1)


def test_each_number_of_rows_is_measured_by_itself() -> None:
    clock = Clock()
    pays = made(clock)
    run(pays, clock, 24, rows=8, drafted=4.0)
    run(pays, clock, 24, rows=1, drafted=1.0)
    assert [pays.drafting(rows) for rows in (1, 2, 5, 8, 9)] == [True, True, False, False, True]


@pytest.mark.parametrize("options", [{"window": 1}, {"windows": 0}, {"margin": 1.0}, {"pause": 0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="pays: a window has 2 passes"):
        Pays(**options)  # type: ignore[arg-type]


class Slow:
    """Drafts nothing of use, and takes long."""

    most, wants_hidden = 2, False

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asked = clock, 0

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[Draft]:
        self.clock.now += 1.0
        self.asked += 1
        return [Draft((row.tokens[-1],)) for row in rows]

    def spent(self) -> Charge:
        return NOTHING

    def drop(self, row: Row) -> None:
        pass


def test_an_engine_switches_it_off_says_so_and_writes_the_same() -> None:
    model, clock = native(context=128), Clock()
    drafter = Slow(clock)
    pays = Pays(window=3, windows=2, margin=0.1, pause=20, clock=clock)
    engine = Engine(model, rows=2, drafter=drafter, pays=pays)
    requests = [Request((5, number), Sampling(temperature=0), 30) for number in range(2)]
    got = {each.number: list(each.tokens) for each in engine.run(requests)}
    assert [got[number + 1] for number in range(2)] == [one_by_one(model, (5, number), 30) for number in range(2)]
    (note,) = engine.notes
    assert note.startswith("drafts do not pay and are switched off at 2 rows")
    assert 6 <= drafter.asked <= 8  # a pass beside the prompt, and the trial's


def test_what_may_change_the_text_does_not_depend_on_the_clock() -> None:
    class Any:
        exact = False

        def accepts(self, question: Question) -> bool:
            return True

    with pytest.raises(UsageError, match="must not depend on the clock"):
        Engine(native(), drafter=Slow(Clock()), acceptance=Any(), pays=Pays())
