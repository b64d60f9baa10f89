import pytest

from shoestring.schedule.trilm import TriLM


def test_the_line_drops_half_way_and_ends_at_the_floor() -> None:
    schedule = TriLM()
    assert [schedule(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([1, 0.75, 0.5 * 2 / 3, 0.25 * 2 / 3, 0])
    assert schedule(0.4999) == pytest.approx(0.5001)
    assert TriLM(floor=0.3, peak=1.0)(1.0) == 0.3


def test_as_the_authors_have_it_the_rates_go_from_one_peak_to_the_other() -> None:
    schedule = TriLM(peak=8e-4 / 1.2e-3)  # their 1.5 B, 2.4 B and 3.9 B models
    before, after = schedule(0.5 - 1e-9), schedule(0.5)
    assert after / before == pytest.approx(8 / 12)


def test_weight_decay_ends_at_two_thirds_and_never_comes_back() -> None:
    schedule = TriLM()
    assert [schedule.weight_decay(p) for p in (0.0, 0.66, 0.67, 1.0, 1.01)] == [1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="progress"):
        schedule.weight_decay(-0.1)
