"""The infinite schedule: its phases, its branch point, and a second phase without re-warming."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import UsageError
from shoestring.schedule.infinite import Infinite


def test_phases_follow_the_formula() -> None:
    schedule = Infinite(constant=0.4, cooldown=0.2, anneal=0.25, floor=0.1)
    assert schedule(0.05) == pytest.approx(0.4 + 0.6 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule(0.2) == schedule(0.5) == schedule(0.75) == 0.4
    assert schedule(0.875) == pytest.approx(math.sqrt(0.4 * 0.1))  # half of an exponential: the geometric mean
    assert schedule(1.0) == 0.1


def test_cooldowns() -> None:
    at = {
        shape: Infinite(constant=0.4, cooldown=0.2, shape=shape)(0.1) for shape in ("cosine", "inverse-sqrt", "linear")
    }
    # the papers' own form of the second: 1 + (constant - 1) g(s) / g(1), g(s) = 1 / sqrt(1 + 10 s) - 1
    inverse = 1 + (0.4 - 1) * (6**-0.5 - 1) / (11**-0.5 - 1)
    assert at == pytest.approx({"cosine": 0.7, "inverse-sqrt": inverse, "linear": 0.7})


@given(st.floats(0.01, 0.6), st.floats(0.01, 0.4), st.sampled_from(["cosine", "inverse-sqrt", "linear"]))
def test_phases_join_without_a_jump(cooldown: float, anneal: float, shape: str) -> None:
    schedule = Infinite(cooldown=cooldown, anneal=anneal, shape=shape)  # type: ignore[arg-type]
    (branch,) = schedule.milestones
    assert branch == 1 - anneal
    for joint in (cooldown, branch):
        assert schedule(joint * (1 - 1e-9)) == pytest.approx(schedule(joint * (1 + 1e-9)), abs=1e-6)
        assert schedule(joint) == pytest.approx(0.5, abs=1e-12)


def test_a_later_phase_begins_at_the_constant_rate_where_the_first_one_branched() -> None:
    first, later = Infinite(constant=0.3), Infinite(constant=0.3, begin="constant")
    (branch,) = first.milestones
    assert later(0.0) == first(branch) == 0.3
    rates = [later(step / 100) for step in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[80], rates[100]) == (0.3, 0.1)


def test_a_trunk_never_anneals() -> None:
    trunk = Infinite(anneal=0.0, begin="constant")
    assert {trunk(step / 10) for step in range(11)} == {0.5}
    assert trunk.milestones == (1.0,)


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"cooldown = 0.7 and anneal = 0.4 come to more than 1"):
        Infinite(cooldown=0.7, anneal=0.4)
    assert Infinite(cooldown=0.7, anneal=0.4, begin="constant")(0.5) == 0.5
    with pytest.raises(UsageError, match=r"floor = 0.6 is above constant = 0.5"):
        Infinite(floor=0.6)
