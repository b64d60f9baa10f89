"""One table for every registered schedule, and the properties that the trainer relies on."""

import math
import tomllib
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.config import Choice, Pick, build, to_toml
from shoestring.errors import UsageError
from shoestring.method import Card, methods
from shoestring.schedule.constant import Constant
from shoestring.schedule.cosine import Cosine
from shoestring.schedule.infinite import Infinite
from shoestring.schedule.linear import LinearDecay
from shoestring.schedule.progress import Schedule
from shoestring.schedule.refined import Refined
from shoestring.schedule.rewarmed import Rewarmed
from shoestring.schedule.warmup import Warmup, with_warmup
from shoestring.schedule.wsd import WSD
from shoestring.schedule.wsd_s import WSDS


@dataclass(frozen=True)
class OneSchedule:
    schedule: Annotated[Choice, Pick("schedule")]


CARDS = methods("schedule", "")
EVERY = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
NEEDED: dict[str, dict[str, Any]] = {"refined": {"points": [1.0, 0.5, 0.0]}}
"""The options without a default, for the methods that have such."""

SHARES = st.floats(1e-3, 1)
FRACTIONS = st.floats(0, 1)
FALLING = st.one_of(
    st.builds(LinearDecay, floor=FRACTIONS),
    st.builds(Cosine, floor=FRACTIONS),
    st.builds(WSD, decay=SHARES, shape=st.sampled_from(["linear", "1-sqrt", "cosine"]), floor=FRACTIONS),
    st.builds(
        Infinite,
        constant=st.floats(0.5, 1),
        cooldown=st.floats(0.01, 0.5),
        anneal=st.floats(0.01, 0.5),
        floor=st.floats(0.01, 0.5),
        shape=st.sampled_from(["cosine", "inverse-sqrt", "linear"]),
    ),
)
"""Schedules that begin at 1, never rise, and end at a floor."""

CURVES = st.lists(FRACTIONS, min_size=2, max_size=9).map(tuple)
SCHEDULES = st.one_of(
    FALLING,
    st.builds(Constant),
    st.builds(WSDS, decay=st.floats(0.01, 0.5), shape=st.sampled_from(["linear", "1-sqrt", "cosine"]), floor=FRACTIONS),
    st.builds(WSDS, decay=st.floats(0.01, 0.5), shape=st.just("inverse"), floor=st.floats(0.01, 1)),
    st.builds(Infinite, begin=st.just("constant"), anneal=st.floats(0, 0.99)),
    st.builds(Refined, points=CURVES),
    st.builds(Rewarmed, warmup=st.floats(0.01, 0.9), floor=FRACTIONS),
)


def test_the_table_holds_the_schedules() -> None:
    assert {card.name for card in CARDS} >= {"wsd", "cosine", "linear", "constant", "wsd_s", "infinite", "refined"}


@EVERY
def test_a_choice_builds_it_and_refuses_nonsense(card: Card) -> None:
    needed = NEEDED.get(card.name, {})
    choice = Choice.of("schedule", card.name, **needed)
    schedule = choice.build()
    assert all(0 <= schedule(step / 64) <= 1 for step in range(65))
    assert max(schedule(step / 64) for step in range(65)) == 1
    assert "arXiv:" in card.paper
    with pytest.raises(UsageError, match=r"unknown key .*flour"):
        Choice.of("schedule", card.name, **needed, flour=0.1)
    with pytest.raises(AttributeError):
        schedule.floor = 0.5
    if "floor" in card.options().model_fields:
        assert Choice.of("schedule", card.name, floor=0.25).build()(1.0) == 0.25
        with pytest.raises(UsageError, match=r"floor = 1\.5"):
            Choice.of("schedule", card.name, floor=1.5)
        with pytest.raises(ValueError, match=r"floor = -0.5"):
            card.target(floor=-0.5)


@EVERY
def test_a_configuration_holds_all_of_it(card: Card) -> None:
    before = OneSchedule(Choice.of("schedule", card.name, **NEEDED.get(card.name, {})))
    text = to_toml(before)
    after = build(OneSchedule, tomllib.loads(text))
    assert to_toml(after) == text
    assert after.schedule.options == before.schedule.options
    assert after.schedule.build() == before.schedule.build()


@given(SCHEDULES, FRACTIONS)
def test_is_a_factor_that_is_pure_and_stays_at_its_end(schedule: Schedule, progress: float) -> None:
    assert 0 <= schedule(progress) <= 1
    assert schedule(progress) == schedule(progress)
    assert schedule(1.01) == schedule(1.0)


@given(st.one_of(SCHEDULES))
def test_milestones_rise_within_the_budget(schedule: Schedule) -> None:
    milestones = getattr(schedule, "milestones", (1.0,))
    assert milestones == tuple(sorted(set(milestones)))
    assert 0 < milestones[0] <= milestones[-1] <= 1


@given(FALLING)
def test_begins_at_one_and_ends_at_the_floor_exactly(schedule: Schedule) -> None:
    assert schedule(0.0) == 1
    assert schedule(1.0) == schedule.floor  # type: ignore[attr-defined]


@given(FALLING, FRACTIONS, FRACTIONS)
def test_never_rises_and_stays_between_the_floor_and_one(schedule: Schedule, one: float, other: float) -> None:
    early, late = sorted((one, other))
    assert schedule(early) >= schedule(late) - 1e-12
    assert schedule.floor - 1e-12 <= schedule(one) <= 1  # type: ignore[attr-defined]


@given(SHARES, st.sampled_from(["linear", "1-sqrt", "cosine"]), FRACTIONS)
def test_wsd_is_one_until_the_decay_and_joins_without_a_jump(decay: float, shape: str, floor: float) -> None:
    schedule = WSD(decay=decay, shape=shape, floor=floor)  # type: ignore[arg-type]
    joint = 1 - decay
    assert schedule(joint * 0.999) == 1
    assert schedule(min(1.0, joint + 1e-8 * decay)) == pytest.approx(1, abs=2e-4)


def test_shapes_of_the_decay() -> None:
    at = {shape: WSD(decay=0.5, shape=shape)(0.625) for shape in ("linear", "1-sqrt", "cosine")}
    assert at == pytest.approx({"linear": 0.75, "1-sqrt": 0.5, "cosine": (1 + math.cos(math.pi / 4)) / 2})
    assert LinearDecay(floor=0.2)(0.25) == pytest.approx(0.8)
    assert Cosine(floor=0.0)(0.5) == pytest.approx(0.5)


@given(SCHEDULES, st.one_of(st.floats(max_value=0, exclude_max=True), st.just(math.nan)), FRACTIONS)
def test_progress_that_is_none_is_refused(schedule: Schedule, progress: float, share: float) -> None:
    for each in (schedule, with_warmup(schedule, share)):
        with pytest.raises(ValueError, match=r"progress is the spent share of the budget"):
            each(progress)


@given(SCHEDULES, SHARES, FRACTIONS)
def test_warmup_rises_from_zero_meets_the_schedule_and_never_exceeds_it(
    schedule: Schedule, share: float, one: float
) -> None:
    warm = with_warmup(schedule, share)
    assert warm(0.0) == 0
    assert warm(share) == schedule(share)
    assert warm(max(one, share)) == schedule(max(one, share))
    assert warm(1.0) == schedule(1.0)
    assert warm(share * (1 - 1e-9)) == pytest.approx(schedule(share), abs=2e-3)
    assert 0 <= warm(one) <= schedule(one)


@given(st.floats(0.01, 0.3), st.floats(0.01, 0.7), FRACTIONS, FRACTIONS)
def test_warmup_before_a_stable_phase_is_a_straight_ramp_to_one(
    share: float, decay: float, one: float, other: float
) -> None:
    warm = with_warmup(WSD(decay=decay), share)
    assert warm(one * share) == pytest.approx(one)
    early, late = sorted((one * (1 - decay), other * (1 - decay)))
    # 1 - sqrt(s) is infinitely steep at s = 0, so rounding of the joint by 1e-16 shows as 1e-8
    assert warm(early) <= warm(late) + 1e-7


def test_no_warmup_is_the_schedule_itself() -> None:
    schedule = LinearDecay()
    assert with_warmup(schedule, 0) is schedule
    assert with_warmup(schedule, 0.1) == Warmup(schedule, 0.1)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="warm-up takes a share of the budget"):
            with_warmup(schedule, share)


@given(st.floats(0.01, 0.9), FRACTIONS, FRACTIONS)
def test_rewarmed_rises_in_a_line_and_falls_as_a_cosine(warmup: float, floor: float, progress: float) -> None:
    schedule = Rewarmed(warmup=warmup, floor=floor)
    assert schedule(0.0) == schedule(1.0) == floor
    assert schedule(warmup) == 1
    if progress <= warmup:
        expected = floor + (1 - floor) * progress / warmup
    else:
        expected = floor + (1 - floor) * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
    assert schedule(progress) == pytest.approx(expected)
