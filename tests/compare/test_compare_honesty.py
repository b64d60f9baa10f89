"""The proof that `compare` is honest, on an objective that costs nothing.

Whole comparisons, conducted and judged, are held to the same decisions as a vectorised rule on the same luck; the rule is
held to its error rate where it can be told sharply, over many thousand repetitions (here, and in test_compare_sequential).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_objective import Objective, design
from test_compare_sequential import first_crossings

from shoestring.compare import Design, RunLog, RunRecord, conduct, judge
from shoestring.compare.comparison import Comparison
from shoestring.compare.record import Purpose
from shoestring.compare.sequential import levels

PAIRS = 20
"""40 runs."""

WORLDS = 150
SAME = {"first": 0.0, "second": 0.0}


def conclude(plan: Design, objective: Objective) -> Comparison:
    return judge(conduct(plan, objective, RunLog()), plan).comparisons[0]


def differences(world: int) -> list[float]:
    """Candidate - base at each of the seeds, in a world where the two arms are the same recipe."""
    objective = Objective(SAME, repetition=world)
    losses = [[objective(arm, seed, {}, "judge").loss or 0.0 for seed in range(PAIRS)] for arm in SAME]
    return [second - first for first, second in zip(*losses, strict=True)]


@pytest.fixture(scope="module")
def worlds() -> np.ndarray:
    return np.array([differences(world) for world in range(WORLDS)])


def at_most(share: float, repetitions: int) -> int:
    """The most calls of a rule that calls with chance `share`, but for one time in 10,000; the luck here is fixed."""
    return int(stats.binom.isf(1e-4, repetitions, share))


def test_forty_runs_of_one_recipe_show_a_difference_in_at_most_5_percent_of_comparisons(worlds: np.ndarray) -> None:
    plan = design(*SAME, seeds=PAIRS)
    called = [
        conclude(plan, Objective(SAME, repetition=world)).verdict != "no difference shown" for world in range(WORLDS)
    ]
    assert called == list(first_crossings({PAIRS: 0.05}, worlds) > 0)
    assert 0 < sum(called) <= at_most(0.05, WORLDS)


def test_adding_seeds_until_decided_calls_no_more(worlds: np.ndarray) -> None:
    plan = design(*SAME, seeds=3, until_decided=PAIRS)
    found = [conclude(plan, Objective(SAME, repetition=world)) for world in range(WORLDS)]
    crossings = first_crossings(levels(3, PAIRS, 1 - 0.95), worlds)
    assert [one.verdict != "no difference shown" for one in found] == list(crossings > 0)
    assert [one.pairs for one in found] == list(np.where(crossings == 0, PAIRS, crossings))
    assert 0 < int((crossings > 0).sum()) <= at_most(0.05, WORLDS)


def test_the_rule_calls_a_true_null_5_percent_of_the_time_and_heavy_tails_no_more() -> None:
    repetitions, rng = 200_000, np.random.default_rng(40)
    normal = first_crossings({PAIRS: 0.05}, rng.standard_normal((repetitions, PAIRS)))
    low, high = stats.binom.interval(0.9999, repetitions, 0.05)
    assert low <= int((normal > 0).sum()) <= high
    heavy = rng.standard_t(3, (repetitions // 4, PAIRS))
    assert (first_crossings({PAIRS: 0.05}, heavy) > 0).mean() < 0.05
    assert (first_crossings(levels(3, PAIRS, 0.05), heavy) > 0).mean() < 0.055


class Detuned(Objective):
    """Its arm 'planted' runs at a thirtieth of the best rate."""

    def __call__(self, arm: str, seed: int, settings: Mapping[str, Any], purpose: Purpose) -> RunRecord:
        rate = self.best / 30 if arm == "planted" else self.best
        return replace(super().__call__(arm, seed, {"lr": rate}, purpose), settings={})


def test_a_planted_worse_arm_is_found() -> None:
    for world in range(40):
        detuned = Detuned({"tuned": 0.0, "planted": 0.0}, repetition=world, best=1e-3)
        plan = design("tuned", "planted", seeds=3)
        found = judge(conduct(plan, detuned, RunLog()), plan).comparisons[0]
        assert found.verdict == "worse"
        assert found.difference == pytest.approx(np.log10(30) ** 2, abs=0.1)


def test_a_difference_of_the_size_said_to_be_detectable_is_detected_in_4_of_5_worlds() -> None:
    plan = design(*SAME, seeds=6)
    own = 0.02 * np.sqrt(2)
    effect = own * 1.435  # of 6 pairs at 95 %, from the published table of the noncentral t
    found = [
        conclude(plan, Objective({"first": 0.0, "second": effect}, repetition=world)).verdict for world in range(300)
    ]
    assert set(found) <= {"worse", "no difference shown"}
    low, high = stats.binom.interval(0.999, len(found), 0.8)
    assert low <= found.count("worse") <= high


def test_sharing_the_seeds_luck_is_what_finds_a_small_difference() -> None:
    """The same runs, unpaired, could not show it."""
    objective = Objective({"first": 0.0, "second": -0.06}, shared=0.3, repetition=3)
    plan = design(*SAME, seeds=6)
    records = conduct(plan, objective, RunLog())
    first, second = ([run.loss for run in records if run.arm == arm] for arm in SAME)
    assert stats.ttest_ind(first, second).pvalue > 0.3
    assert judge(records, plan).comparisons[0].verdict == "better"
