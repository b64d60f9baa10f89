"""The refined schedule, against the paper's sums, and the run folders it is read from."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.schedule.refined import Curve, Refined
from shoestring.schedule.refinement import POINTS, gradient_norms, median_filter, refined_points

GRID = [step / 1000 for step in range(1001)]
SPENT = {"seconds": 20.0, "flops": 3e12, "tokens": 200_000.0}


def write(folder: Path, rows: list[Any], tail: bytes = b"") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(SPENT))
    (folder / "metrics.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + tail)
    return folder


def train(progress: float, norm: Any) -> dict[str, Any]:
    row = {"kind": "train", "step": int(progress * 1000), "progress": progress, "loss": 3.0}
    return {**row, "gradient_norm_1": norm, "gradient_norm": 1.0}


def whole(norm: float = 2.0) -> list[Any]:
    return [train(step / 40, norm) for step in range(41)]


def paper(norms: list[float], exponent: float) -> list[float]:
    """The paper's sums, one by one, without smoothing; then every tenth of them."""
    weights = [norm**-exponent for norm in norms]
    schedule = [weight * math.fsum(weights[step + 1 :]) for step, weight in enumerate(weights)]
    kept = schedule[::10]
    return [factor / max(kept) for factor in kept]


@given(st.floats(1e-6, 1e6), st.floats(0.001, 1), st.sampled_from([1.0, 2.0]))
def test_equal_norms_give_linear_decay(norm: float, smoothing: float, exponent: float) -> None:
    found = refined_points([0.0, 1.0], [norm, norm], smoothing=smoothing, exponent=exponent)
    assert len(found) == POINTS
    assert found == pytest.approx([1 - step / 100 for step in range(101)], abs=1e-9)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_agrees_with_the_papers_sums(exponent: float) -> None:
    norms = [1 + 20 * math.exp(-progress / 0.05) + 3 * progress**8 for progress in GRID]
    found = refined_points(GRID, norms, smoothing=0.001, exponent=exponent)
    assert found == pytest.approx(paper(norms, exponent), abs=1e-9)


def test_large_early_norms_warm_up_and_rising_ones_fall_faster() -> None:
    norms = [1 + 20 * math.exp(-progress / 0.05) for progress in GRID]
    found = refined_points(GRID, norms)
    peak = int(np.argmax(found))
    assert found[0] < 0.2
    assert 5 < peak < 50
    assert list(found[: peak + 1]) == sorted(found[: peak + 1])
    rising = refined_points(GRID, [1 + progress for progress in GRID])
    assert all(factor < 1 - step / 100 for step, factor in list(enumerate(rising))[5:100])


@given(st.floats(1e-3, 1e3))
def test_the_unit_of_the_norms_is_no_matter(unit: float) -> None:
    norms = [1 + math.sin(9 * progress) ** 2 for progress in GRID]
    assert refined_points(GRID, [unit * norm for norm in norms]) == pytest.approx(refined_points(GRID, norms), abs=1e-9)


def test_a_spike_is_smoothed_away() -> None:
    norms = [1.0] * 1001
    norms[300:320] = [50.0] * 20
    assert refined_points(GRID, norms) == pytest.approx([1 - step / 100 for step in range(101)], abs=1e-9)


def test_the_median_pads_its_start_with_the_first_value_and_its_end_by_reflection() -> None:
    values = np.array([9.0, 1.0, 2.0, 3.0, 7.0])
    # windows: 9 9 9 1 2 | 9 9 1 2 3 | 9 1 2 3 7 | 1 2 3 7 3 | 2 3 7 3 2
    assert median_filter(values, 5).tolist() == [9.0, 3.0, 3.0, 3.0, 3.0]
    assert median_filter(values, 1).tolist() == values.tolist()


def test_a_choice_reads_the_run_and_keeps_the_curve(tmp_path: Path) -> None:
    rows = [train(step / 40, 1 + 10 * math.exp(-step / 4)) for step in range(41)]
    folder = write(tmp_path / "past", rows)
    choice = Choice.of("schedule", "refined", points=str(folder), exponent=2)
    (folder / "metrics.jsonl").unlink()
    points = choice.options["points"]
    factors = refined_points([r["progress"] for r in rows], [r["gradient_norm_1"] for r in rows], exponent=2)
    assert points == {"factors": factors, **SPENT}
    schedule = choice.with_options().build()
    assert schedule == Refined(points=points, exponent=2)
    assert [schedule(step / 100) for step in range(101)] == pytest.approx(factors)
    assert choice.options["smoothing"] == 0.1
    assert schedule.spent_before == SPENT


def test_adams_rule_takes_the_1_norm_and_sgds_the_2_norm(tmp_path: Path) -> None:
    rows = [{**train(step / 40, 1 + step), "gradient_norm": 2.0} for step in range(41)]
    folder = write(tmp_path / "past", rows)
    progress = [row["progress"] for row in rows]
    adam = Choice.of("schedule", "refined", points=str(folder)).build().points.factors
    sgd = Choice.of("schedule", "refined", points=str(folder), norm="l2", exponent=2).build().points.factors
    assert adam == refined_points(progress, [1 + step for step in range(41)])
    assert sgd == pytest.approx([1 - step / 100 for step in range(101)])


def test_an_older_run_is_told_what_it_lacks(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "gradient_norm_1"} for row in whole()]
    with pytest.raises(UsageError, match=r"no gradient_norm_1 .*older version has the 2-norm alone: give norm = 'l2'"):
        Choice.of("schedule", "refined", points=str(write(tmp_path, rows)))
    assert Choice.of("schedule", "refined", points=str(tmp_path), norm="l2")


@pytest.mark.parametrize(
    "summary", [None, "{torn", "[]", '{"seconds": 1.0}', '{"seconds": 1, "flops": null, "tokens": 1}']
)
def test_a_run_that_does_not_say_what_it_spent_is_refused(tmp_path: Path, summary: str | None) -> None:
    path = write(tmp_path, whole()) / "summary.json"
    path.unlink() if summary is None else path.write_text(summary)
    with pytest.raises(UsageError, match=r"summary\.json does not say what the run spent"):
        Choice.of("schedule", "refined", points=str(tmp_path))


def test_straight_lines_between_the_points() -> None:
    schedule = Refined(points=Curve((0.5, 1.0, 0.0)))
    assert [schedule(p) for p in (0, 0.25, 0.5, 0.75, 1.0)] == [0.5, 0.75, 1.0, 0.5, 0.0]


def test_other_lines_and_a_torn_one_do_not_count_and_the_last_time_of_a_step_does(tmp_path: Path) -> None:
    rows = (
        whole()[:30] + [{"kind": "heldout", "progress": 0.7, "loss": 2.0}] + [train(s / 40, 5.0) for s in range(20, 41)]
    )
    progress, norms = gradient_norms(write(tmp_path, rows, tail=b'{"kind": "tra'))
    assert progress == [step / 40 for step in range(41)]
    assert norms == [2.0] * 20 + [5.0] * 21


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (whole()[:5], "has 5 measured steps: a schedule is refined from 20 or more"),
        (whole()[:30], r"stopped at 72% of its budget"),
        ([*whole()[:20], train(0.5, float("nan"))], "line 21, has no gradient_norm.*nan"),
        ([*whole()[:20], train(0.5, 0.0)], r"line 21, has no gradient_norm.*0\.0"),
        ([*whole()[:20], train(0.5, "much")], "line 21, has no gradient_norm.*'much'"),
        ([{"kind": "train", "gradient_norm": 1.0}], "line 1, has no progress.*None"),
        ([[1, 2]], "line 1, is damaged: not an object"),
    ],
)
def test_a_run_that_tells_too_little_is_refused_in_one_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Choice.of("schedule", "refined", points=str(write(tmp_path, rows)))
    assert "\n" not in str(caught.value)


def test_no_run_no_metrics_or_damage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run"):
        Choice.of("schedule", "refined", points=str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"holds no metrics\.jsonl"):
        Choice.of("schedule", "refined", points=str(tmp_path))
    write(tmp_path, whole(), tail=b"{torn\n")
    with pytest.raises(UsageError, match="line 42, is damaged: not JSON"):
        Choice.of("schedule", "refined", points=str(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        Choice.of("schedule", "refined", points=str(tmp_path))


def test_the_curve_is_needed_and_checked() -> None:
    with pytest.raises(UsageError, match=r"'refined\.points' is needed"):
        Choice.of("schedule", "refined")
    with pytest.raises(UsageError, match=r"points\.factors\.1 = 1\.5"):
        Choice.of("schedule", "refined", points=[0.0, 1.5])
    with pytest.raises(UsageError, match="points"):
        Choice.of("schedule", "refined", points=[1.0])
    with pytest.raises(UsageError, match=r"refined\.points\.token"):
        Choice.of("schedule", "refined", points={"factors": [1.0, 0.0], "token": 3})
    with pytest.raises(UsageError, match="smoothing = 2"):
        Choice.of("schedule", "refined", points="anywhere", smoothing=2)
