import operator
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_objective import Objective, design, record

from shoestring.compare import RunLog, conduct, judge
from shoestring.compare.conduct import check_alike, check_at_once
from shoestring.errors import ShoestringError, UsageError
from shoestring.jobs.job import Job, JobMachine
from shoestring.jobs.runner import Lost

RATES = tuple({"lr": rate} for rate in (1e-4, 1e-3, 1e-2))
TUNING = {"adamw": RATES, "muon": RATES, "lion": RATES}


def test_trials_then_seeds_interleaved_with_the_order_rotated() -> None:
    objective = Objective({"adamw": 0.0, "muon": -0.1, "lion": 0.1})
    plan = design("adamw", "muon", "lion", seeds=3, tuning=TUNING)
    records = conduct(plan, objective, RunLog())
    assert [(arm, lr["lr"], purpose) for arm, _, lr, purpose in objective.calls[:9]] == [
        *[(arm, 1e-4, "tune") for arm in ("adamw", "muon", "lion")],
        *[(arm, 1e-3, "tune") for arm in ("muon", "lion", "adamw")],
        *[(arm, 1e-2, "tune") for arm in ("lion", "adamw", "muon")],
    ]
    assert {seed for _, seed, _, purpose in objective.calls if purpose == "tune"} == {plan.tuning_seed}
    assert [(seed, arm) for arm, seed, _, _ in objective.calls[9:]] == [
        *[(0, arm) for arm in ("adamw", "muon", "lion")],
        *[(1, arm) for arm in ("muon", "lion", "adamw")],
        *[(2, arm) for arm in ("lion", "adamw", "muon")],
    ]
    assert all(chosen == {"lr": 1e-3} for _, _, chosen, _ in objective.calls[9:])
    assert [r.key for r in records] == [(p, a, s, f'{{"lr": {lr["lr"]}}}') for a, s, lr, p in objective.calls]


def test_no_arm_is_first_more_often_than_another() -> None:
    objective = Objective({"adamw": 0.0, "muon": 0.0, "lion": 0.0})
    conduct(design("adamw", "muon", "lion", seeds=6), objective, RunLog())
    assert set(Counter(arm for arm, *_ in objective.calls[::3]).values()) == {2}


def _small(sequential: bool) -> Any:
    more = {"seeds": 2, "until_decided": 6} if sequential else {"seeds": 3}
    return design("adamw", "muon", "lion", tuning=dict.fromkeys(TUNING, RATES[:2]), **more)


@pytest.mark.parametrize("sequential", [False, True])
@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1))
def test_a_comparison_killed_anywhere_goes_on_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory, sequential: bool, share: float
) -> None:
    plan, path = _small(sequential), tmp_path_factory.mktemp("log") / "runs.jsonl"
    offsets = {"adamw": 0.0, "muon": -0.4, "lion": 0.01}
    whole = conduct(plan, Objective(offsets), RunLog(path))
    content = path.read_bytes()
    cut = round(share * len(content))
    path.write_bytes(content[:cut])
    objective = Objective(offsets)
    assert conduct(plan, objective, RunLog(path)) == whole
    assert path.read_bytes() == content
    assert len(objective.calls) == len(whole) - content[:cut].count(b"\n")


def test_a_decision_at_an_added_seed_falls_alike_wherever_the_comparison_was_stopped() -> None:
    plan = design("adamw", "muon", "lion", seeds=2, until_decided=6)
    offsets = {"adamw": 0.0, "muon": -0.12, "lion": 0.01}
    whole = conduct(plan, Objective(offsets), RunLog())
    assert 2 < Counter(run.arm for run in whole)["muon"] < 6  # decided on the way
    for made in range(len(whole)):
        log = RunLog()
        for run in whole[:made]:
            log.append(run)
        assert conduct(plan, Objective(offsets), log) == whole


def test_a_candidate_that_failed_where_the_base_finished_gets_no_further_seeds() -> None:
    class Once(Objective):
        def __call__(self, arm: str, seed: int, settings: Any, purpose: Any) -> Any:
            run = super().__call__(arm, seed, settings, purpose)
            return record(arm, seed, None) if (arm, seed) == ("muon", 1) else run

    objective = Once({"adamw": 0.0, "muon": 0.0})
    conduct(design(seeds=3, until_decided=8), objective, RunLog())
    assert len(objective.calls) == 6


def test_a_finished_comparison_runs_nothing_again(tmp_path: Path) -> None:
    plan, path = _small(True), tmp_path / "runs.jsonl"
    offsets = {"adamw": 0.0, "muon": -0.4, "lion": 0.01}
    conduct(plan, Objective(offsets), RunLog(path))
    again = Objective(offsets)
    conduct(plan, again, RunLog(path))
    assert again.calls == []


def test_a_run_that_raises_leaves_what_was_done_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"

    class Stopped(Objective):
        def __call__(self, *asked: Any) -> Any:
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(*asked)

    with pytest.raises(KeyboardInterrupt):
        conduct(design(), Stopped({"adamw": 0.0, "muon": 0.0}), RunLog(path))
    assert len(RunLog(path).read()) == 3


def test_seeds_are_added_to_the_base_and_to_undecided_candidates_alone() -> None:
    objective = Objective({"adamw": 0.0, "muon": -0.5, "lion": 0.0})
    plan = design("adamw", "muon", "lion", seeds=3, until_decided=8)
    verdict = judge(conduct(plan, objective, RunLog()), plan)
    runs = Counter(arm for arm, *_ in objective.calls)
    assert (runs["adamw"], runs["muon"], runs["lion"]) == (8, 3, 8)
    words = {one.candidate: one.verdict for one in verdict.comparisons}
    assert words == {"muon": "better", "lion": "no difference shown"}
    assert verdict.seeds == tuple(range(8))


def test_nothing_is_added_once_all_is_decided_or_cannot_be() -> None:
    for offsets, own in (
        ({"adamw": 0.0, "muon": -0.9}, 0.02),
        ({"adamw": 0.0, "muon": None}, 0.02),
        ({"adamw": 0.0, "muon": 0.0}, 0.0),
    ):
        objective = Objective(offsets, own=own)
        conduct(design(seeds=3, until_decided=8), objective, RunLog())
        assert len(objective.calls) == 6


def test_an_arm_all_of_whose_trials_fail_is_reported_and_not_judged(said: list[str]) -> None:
    objective = Objective({"adamw": 0.0, "muon": None, "lion": -0.3})
    plan = design("adamw", "muon", "lion", seeds=3, tuning=TUNING)
    verdict = judge(conduct(plan, objective, RunLog()), plan)
    assert not [call for call in objective.calls if call[0] == "muon" and call[3] == "judge"]
    assert any("every trial of muon failed" in line for line in said)
    muon, lion = verdict.comparisons
    assert (muon.verdict, muon.pairs, lion.verdict) == ("not comparable", 0, "better")
    assert any("every trial of 'muon' failed" in flag for flag in muon.flags)
    arm = verdict.arms["muon"]
    assert arm.tuning is not None
    assert (arm.tuning.chosen, arm.reasons, arm.total_spent.seconds) == (None, ("the loss is not finite",), 180.0)


def test_nothing_is_judged_against_a_base_that_cannot_be_tuned() -> None:
    objective = Objective({"adamw": None, "muon": 0.0})
    plan = design(seeds=3, tuning={"adamw": RATES, "muon": RATES})
    verdict = judge(conduct(plan, objective, RunLog()), plan)
    assert len(objective.calls) == 6
    assert verdict.comparisons[0].verdict == "not comparable"


def test_a_failed_trial_is_never_chosen() -> None:
    class Diverging(Objective):
        def __call__(self, arm: str, seed: int, settings: Any, purpose: Any) -> Any:
            found = super().__call__(arm, seed, settings, purpose)
            if settings["lr"] != 1e-3:
                return found
            return record(arm, seed, None, purpose, settings=dict(settings), seconds=7.0)

    plan = design(seeds=2, tuning={"adamw": RATES, "muon": RATES})
    verdict = judge(conduct(plan, Diverging({"adamw": 0.0, "muon": 0.0}, best=2e-3), RunLog()), plan)
    tuning = verdict.arms["muon"].tuning
    assert tuning is not None
    assert tuning.chosen == {"lr": 1e-2}
    assert [trial.loss is None for trial in tuning.tried] == [False, True, False]
    assert (tuning.spent.seconds, tuning.edge) == (127.0, True)


def test_a_runner_that_returns_another_run_is_stopped() -> None:
    class Other(Objective):
        def __call__(self, arm: str, seed: int, settings: Any, purpose: Any) -> Any:
            return record(arm, seed + 1000, 3.0)

    class Lazy(Objective):
        def map(self, asked: Any) -> Any:
            yield from list(super().map(asked))[:-1]

    for runs, said in ((Other, "which it was not asked for"), (Lazy, "did not return it")):
        with pytest.raises(ValueError, match=said):
            conduct(design(), runs({"adamw": 0.0, "muon": 0.0}), RunLog())


@pytest.mark.parametrize(
    ("stray", "said"),
    [
        (record("sgd", 0, 3.0), "'sgd' at seed 0, which is not an arm"),
        (record("muon", 77, 3.0), "'muon' at seed 77, which is not a seed"),
        (record("muon", 0, 3.0, settings={"lr": 1.0}), "its trials choose {}"),
        (record("muon", 1000, 3.0, "tune", settings={"lr": 1.0}), "which was not to be tried"),
    ],
)
def test_a_log_of_another_comparison_is_refused(stray: Any, said: str) -> None:
    log = RunLog()
    log.append(stray)
    with pytest.raises(ShoestringError, match=said):
        conduct(design(), Objective({"adamw": 0.0, "muon": 0.0}), log)
    with pytest.raises(ShoestringError, match=said):
        judge(log.read(), design())


TOKENS: dict[str, Any] = {"unit": "tokens", "amount": 100_000.0}


class Shuffled(Objective):
    """Yields runs in another order than it was asked for them, as runs do that are made at once."""

    def map(self, asked: Any) -> Any:
        yield from reversed(list(super().map(asked)))


@pytest.mark.parametrize("sequential", [False, True])
def test_runs_that_end_in_any_order_give_the_same_verdict(sequential: bool, tmp_path: Path) -> None:
    plan = design(
        "adamw", "muon", "lion", "soap", tuning=dict.fromkeys([*TUNING, "soap"], RATES[:2]), seeds=3, **TOKENS
    )
    if sequential:
        plan = design("adamw", "muon", seeds=2, until_decided=8, **TOKENS)
    offsets = {"adamw": 0.0, "muon": -0.12, "lion": 0.01, "soap": -0.2}
    one_by_one = conduct(plan, Objective(offsets), RunLog())
    path = tmp_path / "runs.jsonl"
    found = conduct(plan, Shuffled(offsets), RunLog(path))
    assert found != one_by_one
    key = operator.attrgetter("key")
    assert sorted(found, key=key) == sorted(one_by_one, key=key)
    assert judge(found, plan).to_json() == judge(one_by_one, plan).to_json()
    assert sorted(RunLog(path).read(), key=key) == sorted(found, key=key)


def test_runs_that_were_made_before_others_were_lost_are_kept(tmp_path: Path) -> None:
    class Losing(Objective):
        def map(self, asked: Any) -> Any:
            every = list(super().map(asked))
            yield from every[1:]
            raise Lost([Job("the first", "m:f", None)], 3, "no machine")

    path, plan = tmp_path / "runs.jsonl", design(seeds=3)
    with pytest.raises(Lost, match="lost 3 times each, and given up: the first"):
        conduct(plan, Losing({"adamw": 0.0, "muon": 0.0}), RunLog(path))
    again = Objective({"adamw": 0.0, "muon": 0.0})
    assert conduct(plan, again, RunLog(path))
    assert len(again.calls) == 1


def machine(host: str, fingerprint: str) -> JobMachine:
    return JobMachine(host, "a processor", fingerprint, "versions")


def test_equal_seconds_are_of_machines_that_are_alike() -> None:
    plan, unlike = design(), (machine("a", "0"), machine("b", "1"))
    with pytest.raises(UsageError, match="one at a time: they would take time from each other"):
        check_at_once(plan, 2)
    with pytest.raises(UsageError, match=r"a second does not buy the same on a \(.*--unlike-machines"):
        check_alike(plan, unlike)
    check_alike(plan, (machine("a", "0"), machine("b", "0")))
    check_alike(replace(plan, unlike_machines=True), unlike)
    check_alike(design(**TOKENS), unlike)


def test_pairs_of_machines_that_came_later_and_are_unlike_do_not_count_unless_asked_for() -> None:
    class Elsewhere(Objective):
        def __call__(self, arm: str, seed: int, settings: Any, purpose: Any) -> Any:
            run = super().__call__(arm, seed, settings, purpose)
            return replace(run, made_on=machine(arm, {"adamw": "0", "muon": "1"}[arm]).as_json)

    offsets: dict[str, float | None] = {"adamw": 0.0, "muon": -0.9}
    for plan, word, said in (
        (design(), "not comparable", "equal seconds on 2 kinds of machines (adamw, muon)"),
        (design(unlike_machines=True), "better", "as was asked for"),
        (design(**TOKENS), "better", ""),
    ):
        verdict = judge(conduct(plan, Elsewhere(offsets), RunLog()), plan)
        (row,) = verdict.comparisons
        assert row.verdict == word
        assert any(said in flag for flag in row.flags) == bool(said)
        assert [(one.host, one.runs) for one in verdict.machines] == [
            ("adamw", "adamw: seeds 0, 1, 2, 3, 4"),
            ("muon", "muon: seeds 0, 1, 2, 3, 4"),
        ]
        assert verdict.to_json()["machines"][0]["fingerprint"] == "0"
