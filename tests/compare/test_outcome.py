"""Outcomes: ways to train and ways to decode are judged by the same rules."""

import math
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shoestring.compare import RunLog, judge
from shoestring.compare.folder import ComparisonFolder
from shoestring.compare.outcome import ArmOutcome, Terms, outcome_of, terms_of
from shoestring.compare.weighing import weigh
from shoestring.errors import UsageError

EVIDENCE = Path(__file__).parent.parent.parent / "evidence"
FOLDERS = sorted(path.parent for path in EVIDENCE.glob("*/design.toml"))
SPEED = Terms("seconds/written", "ratio", keep="text")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_all_evidence_of_training_is_judged_alike_as_outcomes(folder: Path) -> None:
    opened = ComparisonFolder.open(folder)
    design, records = opened.read_design(), RunLog(opened.records).read()
    outcomes = [outcome_of(record) for record in records if record.purpose == "judge"]
    assert outcomes
    for one in judge(records, design).comparisons:
        found = weigh(outcomes, terms_of(design), design.base, one.candidate, design.confidence)
        if design.sequential or found.verdict == "not comparable":
            assert design.sequential or one.verdict == "not comparable"
            continue
        assert (found.verdict, found.items) == (one.verdict, one.pairs)
        assert found.found.interval == one.interval
        assert found.found.p_value == one.p_value


def decoded(arm: str, seed: int, seconds: list[float], texts: str = "", **items: list[float]) -> ArmOutcome:
    measured = {"seconds/written": tuple(seconds), **{name: tuple(values) for name, values in items.items()}}
    return ArmOutcome(arm, seed, items=measured, texts=tuple(texts))


def test_a_ratio_is_judged_by_item_over_the_seeds() -> None:
    base = [[1.0, 2.0, 4.0, 3.0], [1.1, 2.1, 4.4, 2.9]]
    own = [[0.9, 1.9, 3.1, 2.9], [0.8, 2.0, 3.9, 2.8]]
    outcomes = [decoded("a", s, base[s]) for s in (0, 1)] + [decoded("b", s, own[s]) for s in (0, 1)]
    found = weigh(outcomes, SPEED, "a", "b")
    each = [fmean(math.log(own[s][i] / base[s][i]) for s in (0, 1)) for i in range(4)]
    expected = stats.ttest_1samp(each, 0)
    assert found.found.p_value == pytest.approx(expected.pvalue)
    assert found.found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.seeds, found.items, found.changed) == (2, 4, None)
    assert found.verdict == ("better" if expected.pvalue < 0.05 else "no difference shown")


@pytest.mark.parametrize(
    ("texts", "terms", "verdict", "said"),
    [
        ("wxyz", SPEED, "better", ""),
        ("wxyq", SPEED, "not comparable", "25.0% of the texts are not the base's"),
        ("wxyq", Terms("seconds/written", "ratio"), "better", "25.0% of the texts are not those of 'a'"),
    ],
)
def test_the_text_is_kept_where_that_is_said(texts: str, terms: Terms, verdict: str, said: str) -> None:
    outcomes = [decoded("a", 0, [1.0, 2.0, 3.0, 4.0], "wxyz"), decoded("b", 0, [0.5, 1.01, 1.49, 2.02], texts)]
    found = weigh(outcomes, terms, "a", "b")
    assert found.verdict == verdict
    assert any(said in flag for flag in found.flags) if said else not found.flags


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([1.0, 1.1, 1.2, 1.3], "better"),
        ([1.01, 1.11, 1.20, 1.31], "better"),
        ([1.4, 0.8, 1.5, 1.1], "not comparable"),  # about as good, but it is not shown
        ([1.3, 1.4, 1.5, 1.61], "not comparable"),
        ([0.5, 0.6, 0.7, 0.9], "better"),  # better text is no reason against it
    ],
)
def test_a_loss_is_kept_within_its_margin(losses: list[float], verdict: str) -> None:
    terms = Terms("seconds/written", "ratio", keep="loss", margin=0.05)
    base = decoded("a", 0, [1.0, 2.0, 3.0, 4.0], "wxyz", loss=[1.0, 1.1, 1.2, 1.3])
    found = weigh([base, decoded("b", 0, [0.5, 1.01, 1.49, 2.02], "qqqq", loss=losses)], terms, "a", "b")
    assert found.verdict == verdict
    assert any("loss is not shown to be kept within 0.05" in flag for flag in found.flags) == (verdict != "better")


def test_what_is_held_must_be_held() -> None:
    terms = Terms("accuracy", hold={"flops": 1e9})

    def made(arm: str, flops: float) -> list[ArmOutcome]:
        return [
            ArmOutcome(arm, s, {"accuracy": 0.1 * s + (arm == "b")}, {"flops": flops * (1 + 0.001 * s)})
            for s in range(4)
        ]

    assert weigh(made("a", 1e9) + made("b", 1.005e9), terms, "a", "b").verdict != "not comparable"
    found = weigh(made("a", 1e9) + made("b", 1.02e9), terms, "a", "b")
    assert found.verdict == "not comparable"
    assert "'b' spent up to 2.00 % more flops than 'a'" in found.flags[0]


def test_a_failure_buys_no_verdict() -> None:
    good = [decoded("a", s, [1.0, 2.0, 3.0, 4.0]) for s in (0, 1)]
    outcomes = [*good, decoded("b", 0, [0.5, 1.01, 1.49, 2.02]), ArmOutcome("b", 1, failure="out of memory")]
    found = weigh(outcomes, SPEED, "a", "b")
    assert found.verdict == "no difference shown"
    assert any("out of memory" in flag for flag in found.flags)
    assert (
        weigh([*good, *(ArmOutcome("b", s, failure="no") for s in (0, 1))], SPEED, "a", "b").verdict == "not comparable"
    )


def test_few_items_and_none_and_items_without_noise() -> None:
    assert weigh([], SPEED, "a", "b").verdict == "too few pairs"
    two = [decoded("a", 0, [1.0, 2.0]), decoded("b", 0, [0.5, 1.01])]
    assert weigh(two, SPEED, "a", "b").verdict == "too few pairs"
    same = [decoded("a", 0, [1.0, 2.0, 3.0]), decoded("b", 0, [1.0, 2.0, 3.0])]
    found = weigh(same, SPEED, "a", "b")
    assert (found.verdict, found.found.constant) == ("no difference shown", True)
    other = [decoded("a", 0, [1.0, 2.0, 3.0]), decoded("b", 0, [1.0, 2.0])]
    assert weigh(other, SPEED, "a", "b").verdict == "not comparable"


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=3, max_size=12))
def test_arms_that_change_places_change_the_sign(values: list[tuple[float, float]]) -> None:
    base, own = (list(each) for each in zip(*values, strict=True))
    outcomes = [decoded("a", 0, base), decoded("b", 0, own)]
    one, other = (weigh(outcomes, SPEED, *names) for names in (("a", "b"), ("b", "a")))
    swapped = {"better": "worse", "worse": "better"}
    assert other.verdict == swapped.get(one.verdict, one.verdict)
    assert other.found.difference == pytest.approx(-(one.found.difference or 0.0), abs=1e-12)


def test_equal_arms_are_told_apart_at_most_one_time_in_twenty() -> None:
    draw, called = np.random.default_rng(3), 0
    for _ in range(600):
        hard = draw.lognormal(0, 0.5, size=(1, 25))
        noise = draw.lognormal(0, 0.05, size=(2, 25)) * np.where(draw.random((2, 25)) < 0.03, 2.0, 1.0)
        base, own = (hard * noise).tolist()
        called += weigh([decoded("a", 0, base), decoded("b", 0, own)], SPEED, "a", "b").verdict in ("better", "worse")
    assert called <= 0.05 * 600 + 2 * math.sqrt(600 * 0.05 * 0.95)


def test_terms_that_mean_nothing_are_refused() -> None:
    for wrong in (
        {"keep": "loss"},
        {"keep": "loss", "margin": 0.0},
        {"margin": 0.1},
        {"keep": "text", "margin": 0.1},
        {"scale": "log"},
    ):
        with pytest.raises(UsageError):
            Terms("seconds/written", **wrong)
    with pytest.raises(ValueError, match="not finite"):
        ArmOutcome("a", 0, {"loss": math.nan})
    with pytest.raises(ValueError, match="different numbers of items"):
        ArmOutcome("a", 0, items={"x": (1.0,), "y": (1.0, 2.0)})
