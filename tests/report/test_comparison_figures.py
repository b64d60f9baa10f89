"""The figures of a comparison: intervals, curves over seeds, tuning."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_comparisons import ADAMW, Way, make_comparison, many

from shoestring.compare.standing import Judgement
from shoestring.report.comparison_curves import Lines, _mean, against_base_figure, arm_lines, outlying, together_figure
from shoestring.report.comparison_files import read_comparison
from shoestring.report.comparison_intervals import interval_figure, limits
from shoestring.report.comparison_tuning import short, tuning_figure, varied
from shoestring.report.drawing import COLOUR
from shoestring.report.verdict_records import ComparisonRecord, Tried, TuningRecord
from shoestring.report.verdict_words import LOOKS, confidence, shortened, signed, usual

SPACE = "\N{NO-BREAK SPACE}"


def row(name: str, difference: float | None, half: float = 0.01, verdict: str = "better") -> ComparisonRecord:
    ends = None if difference is None else [difference - half, difference + half]
    pairs = [] if difference is None else [{"seed": 0, "difference": difference - half / 2}]
    return ComparisonRecord.model_validate(
        {"candidate": name, "base": "adamw", "verdict": verdict, "pairs": 3, "difference": difference, "interval": ends,
         "per_seed": pairs}
    )  # fmt: skip


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("width", [1000, 400])
def test_every_row_has_its_interval_its_pairs_and_its_verdict_in_shape_colour_and_word(width: float) -> None:
    rows = [
        row("a", -0.05),
        row("b", 0.001, verdict="no difference shown"),
        row("c", 0.05, verdict="worse"),
        row("d", None, verdict="not comparable"),
    ]
    figure = interval_figure(rows, width=width)
    axes = figure.axes[0]
    marks = {line.get_marker(): line for line in axes.lines if line.get_markersize() == 8.5}
    assert set(marks) == {"o", "s"}
    assert marks["s"].get_color() == COLOUR["s2"]
    hollow = [line.get_markerfacecolor() for line in axes.lines if line.get_markersize() == 8.5]
    assert hollow == [COLOUR["s1"], COLOUR["paper"], COLOUR["s2"]]
    spans = [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 2.4]  # type: ignore[arg-type]
    assert spans == [one.ends for one in rows[:3]]
    words = {text.replace(SPACE, " ") for text in texts(figure)}
    assert {"a", "b", "c", "d", "−0.050  better", "+0.0010  no difference shown", "not comparable"} <= words
    assert axes.get_xlabel().startswith("difference in held-out loss from adamw, nats per token")


def test_every_verdict_that_compare_gives_has_a_look_of_its_own() -> None:
    assert set(LOOKS) == set(get_args(Judgement))
    assert len({(look.marker, look.hollow) for look in LOOKS.values()}) == len(LOOKS)
    interval_figure([row("a", -0.05, verdict="too few pairs")])


def test_a_row_that_dwarfs_the_others_is_left_at_the_edge_and_zero_stays_in_sight() -> None:
    rows = [row("a", -0.05), row("b", -0.02), row("c", 0.03), row("far", 2.0, verdict="worse")]
    low, high = limits(rows)
    assert low < -0.06
    assert 0.04 < high < 0.06
    chevrons = [line for line in interval_figure(rows).axes[0].lines if line.get_marker() == ">"]
    assert [list(line.get_ydata()) for line in chevrons] == [[3]]  # type: ignore[arg-type]
    low, high = limits([row("a", 0.5), row("b", 0.6)])
    assert low < 0 < 0.61 < high


def test_two_rows_are_both_shown_however_far_apart() -> None:
    assert limits([row("a", -0.01), row("b", 3.0)])[1] > 3.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_the_usual_size_holds_most_and_is_one_of_them(sizes: list[float]) -> None:
    most = usual(sizes)
    assert most in sizes
    assert sum(size <= most for size in sizes) > len(sizes) / 2


def test_the_mean_runs_where_every_seed_was_measured() -> None:
    first = (np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 3.0]))
    second = (np.array([1.5, 2.5, 3.5]), np.array([4.0, 3.0, 2.0]))
    mean = _mean([first, second])
    assert mean is not None
    x, y = mean
    assert x.tolist() == [1.5, 2.0, 2.5, 3.0]
    assert y.tolist() == pytest.approx([4.25, 3.75, 3.25, 2.75])
    assert _mean([]) is None
    x, y = _mean([(np.array([1.0]), np.array([1.0])), (np.array([2.0]), np.array([3.0]))]) or (x, y)
    assert (x.tolist(), y.tolist()) == ([1.5], [2.0])  # nothing in common: the mean of their ends


def test_curves_are_every_judged_seed_against_the_unit_up_to_the_final_loss(tmp_path: Path) -> None:
    ways = [ADAMW, Way("muon", fails=2, tune=(0.01, 0.02))]
    compared = read_comparison(make_comparison(tmp_path / "one", ways, unit="tokens"))
    lines = arm_lines(compared, "muon")
    assert (len(lines.seeds), len(lines.failed)) == (3, 2)
    assert lines.seeds[0][0][-1] == 4e6
    run = next(run for run in compared.judged("muon") if run.stopped == "finished")
    late = run.model_copy(update={"curve": run.curve[:-1], "loss": 1.5})
    ended = arm_lines(type(compared)(**{**vars(compared), "runs": [late]}), "muon")
    assert (ended.seeds[0][0][-1], ended.seeds[0][1][-1]) == (4e6, 1.5)


def lines_at(end: float) -> Lines:
    curve = (np.array([0.5, 1.0]), np.array([end + 1, end]))
    return Lines([curve], [], curve)


def test_only_an_arm_that_would_flatten_the_others_gets_a_scale_of_its_own() -> None:
    arms = {"base": lines_at(3.0), "a": lines_at(2.99), "b": lines_at(3.05), "c": lines_at(2.9)}
    assert outlying(arms, "base") == frozenset()
    assert outlying({**arms, "far": lines_at(6.0)}, "base") == {"far"}
    assert outlying({**arms, "gone": Lines([], [], None)}, "base") == frozenset()


def test_curves_together_end_at_their_names_and_against_the_base_in_its_grey() -> None:
    arms = {"base": lines_at(3.0), "a-name-that-is-far-too-long": lines_at(2.9)}
    figure = together_figure(arms, {"base": "ink", "a-name-that-is-far-too-long": "s3"}, "tokens")
    assert {"base", "a-name-that-is-far-to…"} <= set(texts(figure))
    one = against_base_figure(arms["base"], lines_at(2.8), "s1", "tokens", 1.0, (2.5, 3.5))
    bold = [line.get_color() for line in one.axes[0].lines if line.get_linewidth() == 2.2]
    assert bold == [COLOUR["muted"], COLOUR["s1"]]
    assert one.axes[0].get_ylim() == (2.5, 3.5)


@pytest.mark.parametrize("width", [1000, 400])
def test_a_curve_that_leaves_the_frame_says_how_far(width: float) -> None:
    steep = (np.array([0.1, 0.5, 1.0]), np.array([8.25, 3.1, 3.0]))
    arms = {"base": Lines([steep], [], steep), "a": lines_at(2.0)}
    assert "↑ up to 8.25" in texts(together_figure(arms, {"base": "ink", "a": "s3"}, "tokens", width=width))
    low = (np.array([0.1, 0.5, 1.0]), np.array([0.5, 3.1, 3.0]))
    figure = against_base_figure(arms["base"], Lines([low], [], low), "s1", "tokens", 1.0, (2.5, 3.5))
    assert {"↑ up to 8.25", "↓ down to 0.5"} <= set(texts(figure))
    assert not [word for word in texts(together_figure({"a": lines_at(2.0)}, {"a": "s3"}, "tokens")) if "↑" in word]


def test_a_run_that_failed_beyond_the_frame_has_its_cross_on_the_edge() -> None:
    wild = (np.array([0.1, 0.2]), np.array([9.0, 99.0]))
    figure = against_base_figure(lines_at(3.0), Lines([], [wild], None), "s1", "tokens", 1.0, (2.5, 3.5))
    (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert np.asarray(cross.get_ydata()).tolist() == [3.5]
    assert not cross.get_clip_on()


def test_seeds_of_one_evaluation_each_are_points_and_so_is_their_mean() -> None:
    seeds = [(np.array([at]), np.array([loss])) for at, loss in ((0.9, 3.0), (1.0, 2.0))]
    lines = Lines(seeds, [], _mean(seeds))
    points = list(together_figure({"a": lines}, {"a": "s3"}, "seconds").axes[0].lines)
    assert [line.get_marker() for line in points] == ["o", "o", "o"]
    assert np.asarray(points[-1].get_ydata()).tolist() == [2.5]


def tuned(*tried: tuple[dict[str, Any], float | None], chosen: int, edge: bool = False) -> TuningRecord:
    rows = [Tried(settings=settings, loss=loss) for settings, loss in tried]
    return TuningRecord(tried=rows, chosen=tried[chosen][0], edge=edge)


def marks(figure: Any, marker: str) -> list[Any]:
    return [line for line in figure.axes[0].lines if line.get_marker() == marker]


@pytest.mark.parametrize("edge", [False, True])
def test_the_chosen_value_is_ringed_and_an_edge_is_flagged(edge: bool) -> None:
    tuning = tuned(({"lr": 1e-3}, 3.0), ({"lr": 1e-2}, 2.8), ({"lr": 0.1}, None), chosen=1, edge=edge)
    figure = tuning_figure(tuning)
    ring = [line for line in marks(figure, "o") if line.get_markersize() == 13]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in ring] == [([-2.0], [2.8])]
    assert ring[0].get_markeredgecolor() == COLOUR["bad" if edge else "ink"]
    assert [list(line.get_xdata()) for line in marks(figure, "x")] == [[-1.0]], "the failed try"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1e-3", "0.01", "0.1"]
    assert figure.axes[0].get_xlabel() == "lr"


def test_a_try_far_above_the_rest_is_an_arrow_and_does_not_set_the_scale() -> None:
    figure = tuning_figure(tuned(({"lr": 1e-3}, 3.0), ({"lr": 2e-3}, 2.9), ({"lr": 1.0}, 90.0), chosen=1))
    assert len(marks(figure, "^")) == 1
    assert figure.axes[0].get_ylim()[1] < 5


def test_rates_scaled_together_are_one_axis_and_others_a_line_each() -> None:
    together = tuned(*(({"optim.lr": lr, "fallback.lr": lr / 2}, 3 - lr) for lr in (0.1, 0.2, 0.4)), chosen=2)
    assert varied(together.tried) == ["optim.lr"]
    assert len(tuning_figure(together).axes[0].lines[0].get_xdata()) == 3  # type: ignore[arg-type]
    grid = tuned(*(({"lr": lr, "beta": beta}, 3 - lr) for lr in (0.1, 0.2) for beta in (0.9, 0.99)), chosen=0)
    assert varied(grid.tried) == ["lr", "beta"]
    assert {"beta = 0.9", "beta = 0.99"} <= set(texts(tuning_figure(grid)))


@pytest.mark.parametrize(
    "tuning",
    [
        tuned(({"lr": 0.1}, 3.0), chosen=0),
        tuned(({"lr": 0.1}, None), chosen=0),
        tuned(({"shape": "linear"}, 3.0), ({"shape": "cosine"}, 2.9), chosen=1),
        tuned(({"decay": 0.0}, 3.0), ({"decay": 0.5}, 2.9), ({"decay": 1.0}, 2.9), chosen=1),
        tuned(({}, 3.0), chosen=0),
        tuned(({"nesterov": True}, 3.0), ({"nesterov": False}, 3.0), chosen=0),
    ],
)
def test_any_kind_of_setting_can_be_drawn(tuning: TuningRecord) -> None:
    low, high = tuning_figure(tuning).axes[0].get_xlim()
    assert low < high


def test_numbers_are_written_for_people() -> None:
    assert [short(value) for value in (3e-4, 0.0316227, 0.02, 1, 250000, True, "linear", None)] == [
        "3e-4", "0.0316", "0.02", "1", "2.5e5", "true", "linear", "null",
    ]  # fmt: skip
    assert [signed(value) for value in (-0.05123, 0.0042, 0.0, 1.5, None)] == [
        "−0.051", "+0.0042", "0.000", "+1.500", "–",
    ]  # fmt: skip
    assert [confidence(share).replace(SPACE, " ") for share in (0.95, 0.983, 0.9)] == ["95 %", "98.30 %", "90 %"]
    assert shortened("muon-exact", 6) == "muon-…"


def test_twenty_arms_are_ranked_and_each_has_a_row(tmp_path: Path) -> None:
    compared = read_comparison(make_comparison(tmp_path / "one", many(19)))
    figure = interval_figure(compared.verdict.ranked)
    heights = [text.xy[1] for text in figure.axes[0].texts if text.get_ha() == "right"]  # type: ignore[attr-defined]
    assert heights == list(range(19))
