import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from synthetic_objective import Objective, design, luck, record

from shoestring.compare import Design, RunLog, RunRecord, conduct, judge
from shoestring.compare.comparison import Comparison
from shoestring.compare.standing import standing
from shoestring.compare.wording import rates
from shoestring.config import build
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig

SPENT = {"seconds", "flops", "tokens"}
ARM: dict[str, Any] = {
    "runs": None, "failed": None, "reasons": [], "loss": {"mean": None, "sd": None, "values": {}}, "bits_per_byte": None,
    "spent": SPENT, "step_seconds": None, "peak_memory": None, "parameters": None,
    "tuning": {"tried": [{"settings", "loss"}], "chosen": {}, "edge": None, "spent": SPENT}, "total_spent": SPENT,
}  # fmt: skip
COMPARISON = {
    "candidate", "base", "verdict", "pairs", "difference", "interval", "confidence", "p_value", "margin",
    "standard_deviation", "minimum_detectable_effect", "pairs_needed", "speed_up", "extra_memory", "extra_step_seconds",
    "flags", "sentence", "per_seed",
}  # fmt: skip
TOP = {"unit", "amount", "confidence", "base", "seeds", "sequential", "statement", "arms", "comparisons"}
RATES = tuple({"lr": rate} for rate in (1e-4, 1e-3, 1e-2))


def runs(arm: str, losses: Sequence[float | None], **more: Any) -> list[RunRecord]:
    return [record(arm, seed, loss, **more) for seed, loss in enumerate(losses)]


def one(records: Sequence[RunRecord], plan: Design) -> Comparison:
    return judge(records, plan).comparisons[0]


BASE = [3.00, 3.04, 2.97, 3.02, 2.99]
LOWER = [2.90, 2.95, 2.86, 2.93, 2.88]


def test_the_verdict_has_exactly_the_keys_that_the_page_reads() -> None:
    plan = design(seeds=3, tuning={"adamw": RATES, "muon": RATES})
    content = judge(conduct(plan, Objective({"adamw": 0.0, "muon": -0.2}), RunLog()), plan).to_json()
    assert content == json.loads(json.dumps(content, allow_nan=False))
    assert content.keys() == TOP
    for arm in content["arms"].values():
        assert arm.keys() == ARM.keys()
        assert arm["spent"].keys() == arm["total_spent"].keys() == arm["tuning"]["spent"].keys() == SPENT
        assert arm["loss"].keys() == {"mean", "sd", "values"}
        assert arm["loss"]["values"].keys() == {"0", "1", "2"}
        assert arm["tuning"].keys() == {"tried", "chosen", "edge", "spent"}
        assert all(trial.keys() == {"settings", "loss"} for trial in arm["tuning"]["tried"])
    (comparison,) = content["comparisons"]
    assert comparison.keys() == COMPARISON
    assert comparison["speed_up"].keys() == {"share", "ratio", "per_seed", "how"}
    assert all(row.keys() == {"seed", "difference"} for row in comparison["per_seed"])
    assert "\n" not in content["statement"] + comparison["sentence"]
    assert content["seeds"] == [0, 1, 2]


def test_a_clear_difference_with_its_interval_and_its_price() -> None:
    cheap = runs("adamw", BASE, peak_memory=10**9, step_seconds=0.50)
    dear = runs("muon", LOWER, peak_memory=10**9 + 12_000_000, step_seconds=0.52)
    found = one([*cheap, *dear], design())
    assert found.verdict == "better"
    assert found.difference == pytest.approx(-0.1)
    # d = -0.10 -0.09 -0.11 -0.09 -0.11: s = 0.01, t(0.975, 4) = 2.776445
    assert found.interval == pytest.approx(
        (-0.1 - 2.776445 * 0.01 / math.sqrt(5), -0.1 + 2.776445 * 0.01 / math.sqrt(5))
    )
    assert (found.extra_memory, found.extra_step_seconds) == (12_000_000, pytest.approx(0.02))
    # each seed: from 8 down to its end on a straight line; the base's end is reached at (8 - b) / (8 - c)
    shares = sorted((8 - b) / (8 - c) for b, c in zip(BASE, LOWER, strict=True))
    assert found.speed_up.share == pytest.approx(shares[2])
    assert found.flags == ()
    verdict = judge([*cheap, *dear], design())
    for words in ("muon is better than adamw", "0.1000 nats a token lower", "-0.1124 to -0.0876", "12 MB more memory",
                  "20 ms more a step", "muon is at least 1.02 times as fast", "98 %"):  # fmt: skip
        assert words in verdict.sentences[0]
    assert "muon is better than adamw" in verdict.statement
    swapped = one([*cheap, *dear], design("muon", "adamw"))
    assert (swapped.verdict, swapped.difference) == ("worse", pytest.approx(0.1))
    assert swapped.speed_up.ratio == pytest.approx(shares[2])
    assert "adamw is at most 0.98 times as fast" in judge([*cheap, *dear], design("muon", "adamw")).sentences[0]


@pytest.mark.parametrize(
    ("higher", "spread", "said"),
    [
        (0.0, 1, "equal within 0.5 % (0.0150 nats)"),
        (0.0, 5, "not shown to be within 0.5 % (0.0150 nats)"),
        (-0.008, 1, "no more than 0.5 % (0.0150 nats) higher"),
        (0.008, 1, "no more than 0.5 % (0.0150 nats) lower"),
        (0.04, 1, "more than 0.5 % (0.0150 nats) higher"),
        (-0.04, 1, "more than 0.5 % (0.0150 nats) lower"),
    ],
)
def test_a_margin_tells_which_differences_are_left(higher: float, spread: int, said: str) -> None:
    lucks = [spread * luck for luck in (-0.01, -0.005, 0.0, 0.005, 0.01)]  # the interval is the mean +- spread * 0.0098
    moved = [base + higher + luck for base, luck in zip(BASE, lucks, strict=True)]
    records = [*runs("adamw", BASE), *runs("muon", moved)]
    found = judge(records, design(margin=0.005))
    assert found.comparisons[0].margin == pytest.approx(0.005 * 3.004)
    assert f"By its interval it is {said}." in found.sentences[0]
    assert f", {said}" in found.statement
    assert "By its interval" not in judge(records[:-1], design(margin=0.005)).sentences[0]
    plain = judge(records, design())
    assert plain.comparisons[0].margin is None
    assert "0.5 %" not in plain.sentences[0] + plain.statement


def test_noise_is_not_a_difference() -> None:
    records = [*runs("adamw", BASE), *runs("muon", [3.02, 2.99, 2.98, 3.05, 2.96])]
    found = one(records, design())
    assert "as fast" not in judge(records, design()).sentences[0]
    assert found.verdict == "no difference shown"
    assert found.minimum_detectable_effect is not None
    assert abs(found.difference or 0) < found.minimum_detectable_effect
    assert (found.pairs_needed or 0) > 5


def test_one_seed_says_that_more_are_needed() -> None:
    found = one([*runs("adamw", [3.0]), *runs("muon", [1.0])], design(seeds=1))
    assert (found.verdict, found.pairs, found.interval) == ("too few pairs", 1, None)
    assert any("a verdict needs 3 pairs or more" in flag for flag in found.flags)


def test_identical_runs_show_no_difference_and_a_constant_offset_no_certainty() -> None:
    same = one([*runs("adamw", BASE), *runs("muon", BASE)], design())
    assert (same.verdict, same.difference, same.interval) == ("no difference shown", 0.0, None)
    assert any("identical" in flag for flag in same.flags)
    shifted = one([*runs("adamw", BASE), *runs("muon", [loss - 0.5 for loss in BASE])], design())
    assert (shifted.verdict, shifted.interval, shifted.p_value) == ("no difference shown", None, None)
    assert any("the seed changes nothing that is measured" in flag for flag in shifted.flags)


@pytest.mark.parametrize("unit", ["seconds", "flops", "tokens"])
@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_arms_that_spent_differently_are_not_comparable(unit: str, factor: float) -> None:
    spent: dict[str, Any] = {"seconds": 60.0, "flops": 1e12, "tokens": 100_000}
    kind = type(spent[unit])
    amount = {"unit": unit, "amount": spent[unit]}
    uneven = runs("muon", LOWER)
    uneven[3] = record("muon", 3, LOWER[3], **{unit: kind(spent[unit] * factor)})
    found = one([*runs("adamw", BASE), *uneven], design(**amount))
    assert found.verdict == "not comparable"
    assert any(f"5.00 % {'more' if factor > 1 else 'less'} {unit}" in flag and "seed 3" in flag for flag in found.flags)
    within = runs("muon", LOWER, **{unit: kind(spent[unit] * (1 + (factor - 1) / 6))})
    assert one([*runs("adamw", BASE), *within], design(**amount)).verdict == "better"
    others = {"seconds": 1.0, "flops": 1.0, "tokens": 1}
    del others[unit]
    assert one([*runs("adamw", BASE), *runs("muon", LOWER, **others)], design(**amount)).verdict == "better"
    assert one([*runs("adamw", BASE), *uneven], design(tolerance=0.06, **amount)).verdict == "better"


def test_a_candidate_that_fails_where_the_base_finishes_is_not_called_better() -> None:
    found = one([*runs("adamw", BASE), *runs("muon", [*LOWER[:4], None])], design())
    assert (found.verdict, found.pairs) == ("no difference shown", 4)
    assert found.p_value is not None
    assert found.p_value < 0.05
    assert any("'muon' failed at seed 4 (the loss is not finite)" in flag for flag in found.flags)
    worse = one([*runs("adamw", LOWER), *runs("muon", [*BASE[:4], None])], design())
    assert (worse.verdict, worse.pairs) == ("worse", 4)
    base = one([*runs("adamw", [*LOWER[:4], None]), *runs("muon", BASE)], design())
    assert base.verdict == "no difference shown"  # nor is the base called better when it is the one that fails
    both = one([*runs("adamw", [*BASE[:4], None]), *runs("muon", [*LOWER[:4], None])], design())
    assert (both.verdict, both.pairs) == ("better", 4)
    none = one([*runs("adamw", BASE), *runs("muon", [None] * 5)], design())
    assert (none.verdict, none.pairs, none.difference) == ("not comparable", 0, None)


def test_an_arm_says_what_failed_and_charges_it() -> None:
    plan = design()
    failing = [
        *runs("muon", LOWER[:3]),
        record("muon", 3, None, seconds=10.0, reason="out of memory"),
        record("muon", 4, None),
    ]
    verdict = judge([*runs("adamw", BASE), *failing], plan)
    arm = verdict.arms["muon"]
    assert (arm.runs, arm.failed, arm.reasons) == (3, 2, ("out of memory", "the loss is not finite"))
    assert (arm.spent.seconds, arm.total_spent.seconds) == (60.0, 250.0)
    assert set(arm.loss.values) == {0, 1, 2}
    empty = judge([*runs("adamw", BASE), *runs("muon", [None] * 5)], plan).to_json()["arms"]["muon"]
    assert empty["loss"] == {"mean": None, "sd": None, "values": {}}
    assert empty["spent"] == {"seconds": None, "flops": None, "tokens": None}


def test_no_verdict_before_every_planned_seed_has_run() -> None:
    found = one([*runs("adamw", BASE), *runs("muon", LOWER[:4])], design())
    assert (found.verdict, found.pairs) == ("no difference shown", 4)
    assert any("1 of 5 planned seeds have not run" in flag for flag in found.flags)
    assert one([], design()).pairs == 0


def test_what_an_arm_is_made_from_is_charged_to_it() -> None:
    past = {"seconds": 90.0, "flops": 2e12, "tokens": 5e4}
    plan = design(charged={"muon": past})
    verdict = judge([*runs("adamw", BASE), *runs("muon", LOWER)], plan)
    free = judge([*runs("adamw", BASE), *runs("muon", LOWER)], design())
    for unit, spent in past.items():
        assert getattr(verdict.arms["muon"].total_spent, unit) == getattr(free.arms["muon"].total_spent, unit) + spent
    assert verdict.arms["adamw"] == free.arms["adamw"]
    assert "An earlier run (1m 30s) that muon is made from is charged to it too." in verdict.sentences[0]
    with pytest.raises(UsageError, match="charged to 'soap', which is not an arm"):
        design(charged={"soap": past})


def test_tuning_is_charged_and_its_edges_are_told() -> None:
    plan = design(seeds=3, tuning={"adamw": RATES, "muon": RATES})
    verdict = judge(conduct(plan, Objective({"adamw": 0.0, "muon": -0.2}, best=1e-2), RunLog()), plan)
    arm = verdict.arms["muon"]
    assert arm.tuning is not None
    assert (arm.tuning.chosen, arm.tuning.edge) == ({"lr": 1e-2}, True)
    assert (arm.tuning.spent.seconds, arm.tuning.spent.tokens) == (180.0, 300_000)
    assert (arm.spent.seconds, arm.total_spent.seconds) == (60.0, 360.0)
    assert "Tuning: 3 tries (3m 00s) charged to muon, 3 (3m 00s) to adamw." in verdict.sentences[0]
    assert "the edge of what was tried (lr = 0.01): tune wider" in verdict.sentences[0]


@pytest.mark.parametrize(
    ("tried", "best", "edge"),
    [
        (RATES, {"lr": 1e-3}, False),
        (RATES, {"lr": 1e-4}, True),
        (({"lr": 1e-2}, {"lr": 1e-4}, {"lr": 1e-3}), {"lr": 1e-3}, False),  # the order of trying is no order of size
        (({"kind": "a"}, {"kind": "b"}), {"kind": "a"}, False),
        (({"nesterov": False}, {"nesterov": True}), {"nesterov": True}, False),
        (({"lr": 1.0, "b": 1}, {"lr": 1.0, "b": 2}, {"lr": 1.0, "b": 3}), {"lr": 1.0, "b": 2}, False),
        (({"lr": 1.0, "b": 1}, {"lr": 1.0, "b": 2}, {"lr": 1.0, "b": 3}), {"lr": 1.0, "b": 3}, True),
    ],
)
def test_what_counts_as_an_edge(tried: tuple[Mapping[str, Any], ...], best: Mapping[str, Any], edge: bool) -> None:
    plan = design(seeds=1, tuning={"adamw": tried, "muon": tried})
    records = [
        record(arm, plan.tuning_seed, 1.0 if trial == best else 2.0, "tune", settings=dict(trial))
        for arm in plan.arms
        for trial in tried
    ]
    tuning = judge(records, plan).arms["muon"].tuning
    assert tuning is not None
    assert (tuning.chosen, tuning.edge) == (best, edge)


def test_tokens_of_different_length_do_not_compare() -> None:
    longer = [record("muon", seed, loss, bits_per_byte=loss / 3.2) for seed, loss in enumerate(LOWER)]
    found = one([*runs("adamw", BASE), *longer], design())
    assert found.verdict == "not comparable"
    assert any("nats a token do not compare" in flag for flag in found.flags)


def test_a_budget_that_was_missed_by_all_is_told() -> None:
    found = one([*runs("adamw", BASE, seconds=66.0), *runs("muon", LOWER, seconds=66.0)], design())
    assert found.verdict == "better"
    assert sum("10.0 % more seconds a run than planned" in flag for flag in found.flags) == 2


def test_several_candidates_are_told_to_be_drawn_one_by_one() -> None:
    plan = design("adamw", "muon", "lion")
    verdict = judge(
        [*runs("adamw", BASE), *runs("muon", LOWER), *runs("lion", [b + 0.2 + 0.01 * luck(b) for b in BASE])], plan
    )
    assert [found.verdict for found in verdict.comparisons] == ["better", "worse"]
    assert "Each of the 2 comparisons is drawn on its own" in verdict.statement
    assert "\n" not in verdict.statement


def test_pairs_after_the_decision_are_not_counted() -> None:
    plan = design("adamw", "muon", "lion", seeds=3, until_decided=6)
    bases = [*BASE, 3.01]
    records = [*runs("adamw", bases), *runs("muon", [*LOWER, 2.9]), *runs("lion", [b + luck(b) / 30 for b in bases])]
    muon, lion = judge(records, plan).comparisons
    assert (muon.verdict, muon.pairs, lion.pairs) == ("better", 3, 6)
    assert any("decided after 3 pairs: 3 later not counted" in flag for flag in muon.flags)
    assert muon.confidence > 0.95
    assert muon.p_value is not None
    assert muon.p_value < 1 - muon.confidence


def test_a_pair_lost_to_a_failure_costs_a_look_and_not_the_guarantee() -> None:
    plan = design(seeds=3, until_decided=6)
    base: list[float | None] = [3.0, None, 2.97, 3.02, 2.99, 3.01]
    found = one([*runs("adamw", base), *runs("muon", [3.01, 3.0, 2.93, 3.06, 2.97, 3.02])], plan)
    assert (found.pairs, found.verdict) == (5, "no difference shown")
    assert 0.95 < found.confidence < 1


def test_numbers_that_are_not_finite_do_not_reach_the_file() -> None:
    odd = runs("muon", LOWER)
    odd[0] = record("muon", 0, 2.9, bits_per_byte=math.inf, step_seconds=math.nan)
    content = judge([*runs("adamw", BASE), *odd], design()).to_json()
    json.dumps(content, allow_nan=False)
    assert content["arms"]["muon"]["bits_per_byte"] is None
    verdict = judge([*runs("adamw", BASE), *runs("muon", LOWER)], design())
    broken = replace(
        verdict, comparisons=(replace(verdict.comparisons[0], p_value=math.nan, interval=(-math.inf, 0.1)),)
    )
    (row,) = broken.to_json()["comparisons"]
    assert (row["p_value"], row["interval"]) == (None, [None, 0.1])


@pytest.mark.parametrize(
    ("pairs", "said"), [(1, "one pair does not show its noise"), (2, "two pairs show their noise by one number")]
)
def test_fewer_than_three_pairs_give_no_verdict_and_say_what_is_needed(pairs: int, said: str) -> None:
    alike = [base - 0.5 - 0.001 * seed for seed, base in enumerate(BASE)]
    plan = design(seeds=pairs)
    records = [*runs("adamw", BASE[:pairs]), *runs("muon", alike[:pairs])]
    found = judge(records, plan)
    assert found.comparisons[0].verdict == "too few pairs"
    assert any(flag.startswith(said) and flag.endswith("give more with --seeds") for flag in found.comparisons[0].flags)
    assert "too few pairs for a verdict" in found.statement
    three = [*runs("adamw", BASE[:3]), *runs("muon", alike[:3])]
    assert one(three, design(seeds=3)).verdict == "better"
    lost = [*runs("adamw", BASE[:3]), *runs("muon", [*alike[:2], None])]
    assert one(lost, design(seeds=3)).verdict == "too few pairs"


def test_seeds_are_added_to_two_pairs_however_alike_they_are() -> None:
    plan = design(seeds=2, until_decided=4)
    alike = [base - 0.5 - 0.001 * seed for seed, base in enumerate(BASE)]
    assert not standing([*runs("adamw", BASE[:2]), *runs("muon", alike[:2])], plan, "muon").settled
    after = standing([*runs("adamw", BASE[:3]), *runs("muon", alike[:3])], plan, "muon")
    assert (after.settled, after.verdict) == (True, "better")


def test_what_was_not_tuned_is_said_first() -> None:
    records = [*runs("adamw", BASE), *runs("muon", LOWER)]
    found = judge(records, design())
    assert found.statement.startswith(
        "Nothing was tuned: each arm ran at the learning rates of its recipe, or at defaults"
    )
    assert found.sentences[0].startswith("Untuned: muon is better than adamw")
    plan = design(seeds=3, tuning={"adamw": RATES, "muon": RATES})
    tuned = judge(conduct(plan, Objective({"adamw": 0.0, "muon": -0.2}), RunLog()), plan)
    assert "uned" not in tuned.statement
    assert tuned.sentences[0].startswith("muon is better")


def test_the_rates_that_were_not_tuned_are_named() -> None:
    left: dict[str, Any] = {"budget": "1ktok", "model": {}, "train": {"batch": 4}}
    arms = {
        "plain": build(RunConfig, {**left, "optim": {"name": "muon"}}),
        "given": build(RunConfig, {**left, "optim": {"name": "adamw", "lr": 0.5}}),
    }
    default = arms["plain"].optim.options["lr"]
    assert rates(arms) == f"plain has optim.lr = {default:g} (the default of muon), given has optim.lr = 0.5"
