"""The numbers behind the curves."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.report.curves import along, broken, finite, frame, smooth, thin, window
from shoestring.report.drawing import label_points, panel, spread, style

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400).map(np.array)


@given(VALUES, st.integers(1, 60))
def test_a_smoothed_value_is_the_mean_of_its_window(values: np.ndarray, width: int) -> None:
    line = smooth(values, width)
    assert line.shape == values.shape
    for index in (0, len(values) // 2, len(values) - 1):
        half = min(index, width // 2)
        assert line[index] == pytest.approx(values[index - half : index + half + 1].mean(), abs=1e-3)


def test_smoothing_does_not_bend_a_straight_fall_but_averages_the_end() -> None:
    fall = np.linspace(8.0, 3.0, 200)
    assert np.allclose(smooth(fall, 21)[:-10], fall[:-10])
    noisy = np.tile([0.0, 1.0], 100)
    assert abs(smooth(noisy, 20)[-1] - 0.5) < 0.06


@given(VALUES, st.integers(4, 50))
def test_thinning_keeps_ends_and_extremes(values: np.ndarray, points: int) -> None:
    kept = thin(values, points)
    assert len(kept) <= points + 2 or len(values) <= points
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    assert np.all(np.diff(kept) > 0)
    assert {values.min(), values.max()} <= set(values[kept])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15), st.floats(0.01, 0.3))
def test_labels_stand_apart_in_order_and_inside(heights: list[float], gap: float) -> None:
    placed = spread(heights, gap)
    gap = min(gap, 1 / max(1, len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda index: (heights[index], index))
    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)


def test_labels_that_do_not_touch_stay_and_those_that_do_part_evenly() -> None:
    assert spread([0.9, 0.1], 0.2) == pytest.approx([0.9, 0.1])
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])


def test_the_frame_shows_what_follows_the_first_fall() -> None:
    x = np.linspace(0, 1, 1000)
    low, high = frame([(x, 3 + 6 * np.exp(-60 * x))])
    assert low < 3 < high < 3.2
    low, high = frame([(x, np.where(np.arange(1000) == 700, 1e6, 1.0))], floor=0.0)
    assert low == 0
    assert high < 3, "one spike must not flatten the rest"


def test_a_frame_has_a_height_whatever_there_is_to_show() -> None:
    empty = np.array([])
    for curves in ([], [(empty, empty)], [(np.array([0.0]), np.array([0.0]))], [(np.array([1.0]), np.array([7.0]))]):
        low, high = frame(curves)
        assert low < high


def test_nearly_level_values_look_level() -> None:
    low, high = frame([(np.array([1.0, 2.0]), np.array([8.731, 8.746]))])
    assert high - low > 0.4
    assert low + high == pytest.approx(2 * 8.7385)


def test_values_that_are_not_finite_are_set_aside_and_counted() -> None:
    rows = [{"x": 1, "y": 2}, {"x": 2, "y": float("nan")}, {"x": 3}, {"x": None, "y": 1}, {"x": 5, "y": float("inf")}]
    assert [column.tolist() for column in finite(rows, "x", "y")] == [[1.0], [2.0]]  # type: ignore[arg-type]
    assert broken(rows, "x", "y").tolist() == [2.0, 5.0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "most", "expected"),
    [
        ("progress", 1.0, (0.01, "share of the budget spent, %")),
        ("seconds", 60.0, (1.0, "time spent, seconds")),
        ("seconds", 1200.0, (60.0, "time spent, minutes")),
        ("seconds", 40000.0, (3600.0, "time spent, hours")),
        ("flops", 3.2e15, (1e15, "computation spent, 10¹⁵ FLOPs")),
        ("tokens", 3.2e7, (1e6, "trained on, million tokens")),
        ("tokens", 0.0, (1.0, "trained on, tokens")),
    ],
)
def test_an_axis_is_scaled_to_its_unit(key: str, most: float, expected: tuple[float, str]) -> None:
    assert along(key, most) == expected


def test_the_window_is_a_fiftieth_and_never_empty() -> None:
    assert (window(0), window(49), window(5000)) == (1, 1, 100)


def test_texts_of_points_cover_neither_each_other_nor_a_point() -> None:
    points = [
        (0.0, 0.0, "first", "s1"),
        (0.01, 0.0, "second", "s1"),
        (0.0, 0.02, "third", "s1"),
        (1.0, 1.0, "far", "s1"),
    ]
    with style():
        _, axes = panel(500, 300)
        axes.plot([x for x, *_ in points], [y for _, y, *_ in points], "o")
        label_points(axes, points)
    boxes = [text.get_window_extent() for text in axes.texts]
    dots = axes.transData.transform([point[:2] for point in points])
    assert [text.get_text() for text in axes.texts] == ["first", "second", "third", "far"]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not any(box.contains(*dot) for place, dot in enumerate(dots) if place != number)
