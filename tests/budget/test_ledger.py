import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import EVALUATION, Ledger, Totals, read_ledger, totals_from_dict, totals_to_dict
from shoestring.errors import ShoestringError


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_inner_clock_pauses_the_outer_and_the_rest_is_idle() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    clock.now += 1
    with ledger.clock("compute"):
        clock.now += 2
        with ledger.clock("data"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert dict(ledger.totals.seconds) == {"idle": 17, "compute": 10, "data": 4}
    assert ledger.totals.wall_clock == 31


@given(st.lists(st.tuples(st.sampled_from(["compute", "data", "evaluate", "idle"]), st.floats(0, 100), st.booleans())))
def test_the_causes_add_up_to_the_wall_clock(blocks: list[tuple[str, float, bool]]) -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    for cause, seconds, written in blocks:
        with ledger.clock(cause):
            clock.now += seconds
            if written:
                ledger.write("line")
    assert ledger.totals.wall_clock == pytest.approx(clock.now, abs=1e-4)


def test_a_ledger_goes_on_where_it_was_and_roll_back_discards(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)
    first.charge(Charge(tokens=100, flops=10**20 + 1, sent=7))
    first.charge(Charge(flops=30, read=4), EVALUATION)
    first.write("one")
    kept = first.totals
    first.charge(Charge(tokens=50, flops=5))
    first.charge(Charge(flops=12, sent=2), EVALUATION)
    first.write("two")
    first.close()
    second = Ledger(path)
    assert (second.totals.tokens, second.totals.flops) == (150, 10**20 + 6)
    second.roll_back(totals_from_dict(json.loads(json.dumps(totals_to_dict(kept)))))
    totals = second.totals
    assert (totals.tokens, totals.discarded, totals.flops, totals.flops_discarded) == (100, 50, 10**20 + 1, 5)
    assert totals.sent == 9
    # what was spent on judging is not lost with the model, and limits no budget of FLOPs
    assert totals.accounts == {EVALUATION: Charge(flops=42, read=4, sent=2)}
    assert totals.wall_clock >= kept.wall_clock
    summed = Totals()
    for line in read_ledger(path):
        summed = summed.plus(line)
    assert summed.tokens == 100


def test_a_torn_last_line_is_cut_off_and_damage_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.charge(Charge(tokens=1))
    ledger.write("whole")
    ledger.close()
    with open(path, "ab") as file:
        file.write(b'{"event": "torn", "tok')
    again = Ledger(path)
    again.charge(Charge(tokens=1))
    again.write("next")
    assert [line["event"] for line in read_ledger(path)] == ["whole", "next"]
    path.write_bytes(b"not json\n" + path.read_bytes())
    with pytest.raises(ShoestringError, match="line 1, is damaged"):
        Ledger(path)


def test_unknown_causes_and_accounts_are_refused() -> None:
    with pytest.raises(ValueError, match="not a cause"), Ledger().clock("coffee"):
        pass
    with pytest.raises(ValueError, match="'evaluations' is not an account: did you mean 'evaluation'"):
        Ledger().charge(Charge(flops=1), "evaluations")
