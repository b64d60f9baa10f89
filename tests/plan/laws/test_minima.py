"""Laws that find the best runs for their compute themselves, and limits taken one after the other."""

import itertools
import math

import numpy as np
import pytest

from shoestring.errors import UsageError
from shoestring.plan.laws.autoregressive import Autoregressive, size_for
from shoestring.plan.laws.average_parameters import average
from shoestring.plan.laws.batch_size import BatchSize
from shoestring.plan.laws.best_rate import BestRate
from shoestring.plan.laws.capacity_gap import CapacityGap
from shoestring.plan.laws.cerebras_ladder import CerebrasLadder, off_the_line
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.laws.chinchilla_envelope import ChinchillaEnvelope
from shoestring.plan.laws.chinchilla_isoflop import ChinchillaIsoflop
from shoestring.plan.laws.corrected_isoflop import CorrectedIsoflop
from shoestring.plan.laws.data_parallelism import DataParallelism, region
from shoestring.plan.laws.efficiency_leverage import EfficiencyLeverage
from shoestring.plan.laws.feedback_alignment import FeedbackAlignment, break_even
from shoestring.plan.laws.infinite_compute import InfiniteCompute
from shoestring.plan.laws.joint_moe import JointMoE
from shoestring.plan.laws.kaplan import Kaplan
from shoestring.plan.laws.one_epoch import OneEpoch
from shoestring.plan.laws.quality_quantity import QualityQuantity, mixed
from shoestring.plan.runs_table import RunsTable

PLANTED = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.30}
SHARE = 0.30 / (0.34 + 0.30)
"""The exponent of the best size over compute that the planted law has: beta / (alpha + beta)."""


def best_size(compute: float) -> float:
    """Where A alpha N^-alpha = B beta D^-beta at 6 N D = C, by its closed form."""
    c = PLANTED
    base = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1 / (c["alpha"] + c["beta"]))
    return float(base * (compute / 6) ** SHARE)


def isoflops(sizes: int = 7, noise: float = 0.0) -> RunsTable:
    """Sizes about the best one for each of four amounts of compute."""
    law, drawn, rows = Chinchilla(), np.random.default_rng(0), []
    for compute in (1e15, 1e16, 1e17, 1e18):
        for factor in np.geomspace(0.4, 2.5, sizes):
            size = best_size(compute) * factor
            tokens = compute / 6 / size
            loss = law.value(PLANTED, {"parameters": size, "tokens": tokens}) * math.exp(
                noise * drawn.standard_normal()
            )
            rows.append({"parameters": size, "body": size, "tokens": tokens, "loss": loss})
    return RunsTable.of(rows)


def test_parabolas_give_the_best_size_of_each_compute() -> None:
    found = ChinchillaIsoflop().fit(isoflops(), resamples=2, rungs=0)
    assert found.constants["alpha"] == pytest.approx(SHARE, abs=0.02)
    assert found.predict({"compute": 1e19}).value == pytest.approx(best_size(1e19), rel=0.1)
    tokens = ChinchillaIsoflop(column="tokens").fit(isoflops(), resamples=2, rungs=0)
    assert tokens.constants["alpha"] == pytest.approx(1 - SHARE, abs=0.02)


def test_the_best_teacher_is_a_multiple_of_the_student() -> None:
    drawn = np.random.default_rng(1)
    rows = [
        {
            "parameters": student,
            "teacher_parameters": student * times,
            "loss": 3 + 0.2 * math.log(times / 2.5) ** 2 + 40 / student**0.3 + 0.002 * drawn.standard_normal(),
        }
        for student in (1e6, 4e6, 16e6, 64e6)
        for times in (1.2, 2.0, 4.0, 8.0)
    ]
    law = CapacityGap()
    found = law.fit(RunsTable.of(rows), resamples=2, rungs=0)
    assert found.constants["r"] == pytest.approx(2.5, rel=0.1)
    low, high = found.intervals["r"]
    assert low < 2.5 < high
    assert found.predict({"parameters": 1e9}).value == pytest.approx(2.5e9, rel=0.1)
    assert law.value(law.published["zhang"], {"parameters": 3e9}) == pytest.approx(7.5e9)
    with pytest.raises(UsageError, match="needs the column 'teacher_parameters'"):
        law.fit(isoflops())


def test_the_envelope_of_curves_gives_it_too() -> None:
    law = Chinchilla()
    rows = [
        {"parameters": size, "tokens": tokens, "loss": law.value(PLANTED, {"parameters": size, "tokens": tokens})}
        for size in np.geomspace(1e5, 1e9, 33)
        for tokens in np.geomspace(1e6, 1e12, 49)
        if 1e14 < 6 * size * tokens < 1e19
    ]
    found = ChinchillaEnvelope(bins=20).fit(RunsTable.of(rows), resamples=2, rungs=0)
    assert found.constants["alpha"] == pytest.approx(SHARE, abs=0.04)
    assert found.predict({"compute": 1e18}).value == pytest.approx(best_size(1e18), rel=0.35)


def test_too_few_minima_are_refused() -> None:
    one = isoflops().select(isoflops().column("compute") < 1e17)
    with pytest.raises(UsageError, match="2 minima of the loss over parameters are too few"):
        ChinchillaIsoflop().fit(one)
    falling = RunsTable.of([
        {"parameters": n, "tokens": c / 6 / n, "loss": 10 - math.log(n) / 10} for c in (1e15, 1e16, 1e17) for n in (1e6, 4e6, 16e6)
    ])  # fmt: skip
    with pytest.raises(UsageError, match="0 minima"):
        ChinchillaIsoflop().fit(falling)


def test_each_correction_moves_the_exponent() -> None:
    """A head that small models spend most of their compute on makes the uncorrected exponent too large, as Kaplan's is."""
    law, rows, head = Chinchilla(), [], 3e7
    for compute in (1e15, 1e16, 1e17, 1e18):
        middle = best_size(compute)
        for factor in np.geomspace(0.2, 5, 13):
            body = middle * factor
            tokens = compute / 6 / (body + head)
            loss = law.value(PLANTED, {"parameters": body + head, "tokens": tokens})
            rows.append({
                "body": body, "vocabulary_parameters": head, "tokens": tokens, "loss": loss, "warmup": 1.0, "steps": 100.0
            })  # fmt: skip
    table = RunsTable.of(rows)
    rows_with, rows_without = (CorrectedIsoflop(head=head, tolerance=0.2) for head in (True, False))
    assert len(rows_with.prepare(table)) >= 3
    assert rows_with.prepare(table).column("compute") == pytest.approx(
        [1e15, 1e16, 1e17, 1e18][-len(rows_with.prepare(table)) :]
    )
    with pytest.raises(UsageError, match=r"minima|warms up"):
        rows_without.prepare(table)  # what is one level of compute is none any more
    slow = table.adding("warmup", np.full(len(table), 50.0))
    with pytest.raises(UsageError, match="every run warms up for more than 20%"):
        CorrectedIsoflop().prepare(slow)
    twice = table.joined(table.adding("loss", table.column("loss") + 0.5))
    assert CorrectedIsoflop(tolerance=0.2).prepare(twice).column("loss") == pytest.approx(
        rows_with.prepare(table).column("loss")
    )


def test_the_best_batch_grows_with_compute() -> None:
    rows = [
        {"batch": b, "compute": c, "tokens": c / 1e7, "loss": 3 + 0.05 * math.log(b / (1e4 * (c / 1e16) ** 0.25)) ** 2}
        for c in (1e15, 1e16, 1e17, 1e18)
        for b in (2e3, 4e3, 8e3, 16e3, 32e3)
    ]
    for along in ("compute", "tokens"):
        found = BatchSize(along=along).fit(RunsTable.of(rows), resamples=2, rungs=0)
        assert found.constants["alpha"] == pytest.approx(0.25, abs=1e-3)
        assert found.predict({"compute": 1e20, "tokens": 1e13}).value == pytest.approx(1e4 * 1e4**0.25, rel=0.01)


def test_the_best_rate_falls_with_tokens() -> None:
    rows = [
        {"learning_rate": r, "tokens": d, "loss": 3 + 0.05 * math.log(r / (0.02 * (d / 1e6) ** -0.3)) ** 2}
        for d in (1e6, 3e6, 9e6)
        for r in (5e-3, 1e-2, 2e-2, 4e-2)
    ]
    found = BestRate().fit(RunsTable.of(rows), resamples=2, rungs=0)
    assert found.constants["alpha"] == pytest.approx(0.3, abs=1e-3)
    assert found.predict({"tokens": 1e8}).value == pytest.approx(0.02 * 100**-0.3, rel=0.01)


def test_limits_are_taken_one_after_the_other() -> None:
    """The asymptote over members of each size, and over sizes of those, is that of both."""
    rows = [
        {"parameters": n, "members": k, "loss": 3.2 + 5e3 / n**0.6 + 0.2 / k**0.8 + extra}
        for n in (1e6, 4e6, 16e6, 64e6, 256e6)
        for k in (1, 2, 4, 8)
        for extra in (0.0, 0.4)  # of a worse weight decay
    ]
    found = InfiniteCompute(then="members").fit(RunsTable.of(rows), resamples=2, rungs=0, most_steps=120)
    assert found.constants["E"] == pytest.approx(3.2, rel=1e-3)
    one = InfiniteCompute().fit(
        RunsTable.of([row for row in rows if row["members"] == 1]), resamples=2, rungs=0, most_steps=120
    )
    assert one.constants["E"] == pytest.approx(3.4, rel=1e-3)
    with pytest.raises(UsageError, match="needs 4 numbers of members"):
        InfiniteCompute(then="members").fit(RunsTable.of([row for row in rows if row["members"] < 4]))


def test_one_epoch_refuses_repeated_text() -> None:
    rows = [{"tokens": d, "unique": 1e8, "loss": 40 / d**0.15} for d in (1e7, 3e7, 6e7, 1e8)]
    OneEpoch().fit(RunsTable.of(rows), resamples=2, rungs=0)
    with pytest.raises(UsageError, match="run 5 repeats its text"):
        OneEpoch().fit(RunsTable.of([*rows, {"tokens": 2e8, "unique": 1e8, "loss": 2.3}]))


def test_runs_off_the_ladder_are_left_out_and_those_off_the_line_named() -> None:
    rows = [
        {"parameters": n, "tokens": 20 * n, "loss": 0.5 + 47 / (120 * n * n) ** 0.0737}
        for n in np.geomspace(1e6, 1e9, 8)
    ]
    ladder = CerebrasLadder().fit(
        RunsTable.of([*rows, {"parameters": 1e6, "tokens": 1e9, "loss": 1.0}]), resamples=2, rungs=0
    )
    assert len(ladder.rows) == 8
    bad = RunsTable.of([rows[3], {**rows[4], "loss": rows[4]["loss"] * 1.1}])
    assert off_the_line(ladder, bad) == ["run 2"]
    with pytest.raises(UsageError, match="no run has 50 tokens a parameter"):
        CerebrasLadder(ratio=50.0).prepare(RunsTable.of(rows))


def test_what_follows_from_fitted_laws() -> None:
    steps = DataParallelism().fit(
        RunsTable.of([{"batch": b, "steps": 400 * (1 + 3e4 / b)} for b in (1e3, 4e3, 16e3, 64e3, 256e3)]), rungs=0
    )
    assert [region(steps, batch) for batch in (1e2, 3e4, 1e7)] == [
        "perfect scaling",
        "diminishing returns",
        "maximal data parallelism",
    ]
    power = Autoregressive().fit(
        RunsTable.of([{"parameters": n, "loss": 2 + 300 / n**0.3} for n in (1e5, 1e6, 1e7, 1e8, 1e9)])
    )
    assert size_for(power, 0.01) == pytest.approx((300 / 0.01) ** (1 / 0.3), rel=0.02)
    ways = FeedbackAlignment().fit(
        RunsTable.of([
            {"compute": c, "other_way": way, "loss": (20, 22)[way] * c**-0.05} for c in (1e14, 1e15, 1e16) for way in (0, 1)
        ]),
        rungs=0,
    )  # fmt: skip
    assert break_even(ways, 1e16) == pytest.approx((22 / 20) ** (1 / 0.05), rel=1e-3)


def test_the_average_of_a_pruned_run_is_that_of_its_steps() -> None:
    steps = (np.arange(100_000) + 0.5) / 100_000
    within = np.clip((steps - 0.25) / 0.5, 0, 1)
    sparsity = 0.8 * (1 - (1 - within) ** 3)
    assert average(1e6, 0.8) == pytest.approx(1e6 * (1 - sparsity).mean(), rel=1e-4)


def test_mixed_pools_lose_their_utility_more_slowly() -> None:
    alone, pools = {"b": 0.3, "tau": 2.0}, [{"b": 0.3, "tau": 2.0}, {"b": 0.1, "tau": 4.0}]
    assert mixed([alone], 3) == pytest.approx(0.3 * 2 ** (-2 / 2))
    assert mixed(pools, 3) == pytest.approx((0.3 * 2 ** (-2 / 4) + 0.1 * 2 ** (-2 / 8)) / 2)
    assert QualityQuantity().names == ("d", "a", "b", "tau")


def test_published_fits_give_published_values() -> None:
    chinchilla = Chinchilla()
    gopher = {"parameters": 280e9, "tokens": 300e9}
    own = {"parameters": 70e9, "tokens": 1.4e12}
    assert chinchilla.value(chinchilla.constants_of("hoffmann"), own) < chinchilla.value(
        chinchilla.constants_of("hoffmann"), gopher
    )
    joint = JointMoE()  # table 3 gives m N^mu + n D^nu + c of each number of experts
    for experts, (m, mu, n, nu) in {
        1: (30.3640, -0.1817, 53.9838, -0.1965),
        2: (27.7982, -0.1780, 66.8401, -0.2065),
    }.items():
        for size, tokens in itertools.product((1e8, 1e9), (1e10, 1e11)):
            row = {"active": size, "tokens": tokens, "experts": experts}
            said = joint.value(joint.constants_of("ludziejewski"), row)
            assert said == pytest.approx(m * size**mu + n * tokens**nu + 1.3637, abs=2e-3)
    kaplan = Kaplan(form="size")
    assert kaplan.value(kaplan.constants_of("size"), {"body": 8.8e13}) == pytest.approx(1.0)
    leverage = EfficiencyLeverage()
    assert (
        4
        < leverage.value(leverage.constants_of("ling"), {"activation_ratio": 0.034, "granularity": 12, "compute": 1e22})
        < 9
    )
    cerebras = CerebrasLadder()
    assert cerebras.value(cerebras.constants_of("pile"), {"compute": 5.984e22}) == pytest.approx(1.5066)
    with pytest.raises(UsageError, match=r"no published fit 'hofman'.*hoffmann"):
        chinchilla.constants_of("hofman")
