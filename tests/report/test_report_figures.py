"""The figures: what they show, how they are named, and the loss curve as a file of its own."""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_runs import make_run, write_lines

from shoestring.budget.ledger import Totals
from shoestring.errors import ShoestringError, UsageError
from shoestring.report.figures import loss_figure, overlay_figure, save_loss_curve, shares, time_figure
from shoestring.report.run_files import read_run


def words(figure: object) -> list[str]:
    """Every text on a figure's only pair of axes."""
    axes = figure.axes[0]  # type: ignore[attr-defined]
    return [axes.get_xlabel(), *(text.get_text() for text in axes.texts)]


def test_the_loss_curve_names_its_axes_and_labels_its_lines(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    shown = words(loss_figure(run))
    assert shown[0] == "time spent, seconds"
    assert "nats per token" in shown
    assert f"held out\n{run.heldout[-1]['loss']:.3f}" in shown
    assert any(text.startswith("training\n") for text in shown)
    assert any(text.startswith("↑ up to") for text in shown), "the first fall leaves the frame, and that is said"
    assert words(loss_figure(run, "flops"))[0] == "computation spent, 10¹⁵ FLOPs"
    assert words(loss_figure(run, "tokens"))[0] == "trained on, million tokens"


def test_held_out_points_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    points = next(line for line in loss_figure(run).axes[0].lines if line.get_marker() == "o")
    assert list(points.get_xdata()) == [row["seconds"] for row in run.heldout]  # type: ignore[arg-type]
    assert list(points.get_ydata()) == [row["loss"] for row in run.heldout]  # type: ignore[arg-type]


def test_a_long_run_is_drawn_with_few_points_and_loses_no_spike(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=3000)
    run = read_run(folder)
    run.train[1500]["loss"] = 4.9
    axes = loss_figure(run).axes[0]
    assert sum(len(line.get_xdata()) for line in axes.lines) < 1000  # type: ignore[arg-type, misc]
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() >= 4.9  # type: ignore[index, union-attr]


def test_the_shares_of_time_add_up_and_hidden_exchange_stays_out() -> None:
    totals = Totals(seconds={"compute": 6.0, "data": 1.0, "sync_exposed": 3.0, "sync_hidden": 5.0, "new cause": 0.0})
    rows = shares(totals)
    assert rows == [
        ("compute", 6.0, 0.6),
        ("sync_exposed", 3.0, pytest.approx(0.3)),
        ("data", 1.0, 0.1),
        ("idle", 0.0, 0.0),
        ("sync_hidden", 5.0, None),
    ]
    assert sum(seconds for _, seconds, share in rows if share is not None) == totals.wall_clock
    bars = [bar.get_width() for bar in time_figure(totals).axes[0].patches]  # type: ignore[attr-defined]
    assert bars == [seconds for _, seconds, _ in rows]


def test_time_that_is_all_zero_can_be_drawn() -> None:
    assert shares(Totals(seconds={"compute": 0.0})) == [("idle", 0.0, 0.0)]
    time_figure(Totals(seconds={"compute": 0.0}))


def test_overlaid_lines_end_at_their_letters_and_many_runs_stay_apart(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / f"{index}", steps=40, seed=index)) for index in range(10)]
    letters = list("ABCDEFGHIJ")
    axes = overlay_figure(runs, letters, "train", "seconds").axes[0]
    assert sorted(text.get_text() for text in axes.texts if len(text.get_text()) == 1) == letters
    looks = [(line.get_color(), line.get_linestyle(), line._dash_pattern) for line in axes.lines]  # type: ignore[attr-defined]
    assert len({str(look) for look in looks}) == 10


def test_a_line_under_another_is_wider_and_the_frame_shows_how_runs_end(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / f"{index}", steps=40, seed=7)) for index in range(3)]
    axes = overlay_figure(runs, list("ABC"), "train", "seconds").axes[0]
    widths = [line.get_linewidth() for line in axes.lines]
    assert widths == sorted(set(widths), reverse=True)
    ends = [row["loss"] for row in runs[0].train[20:]]
    assert axes.get_ylim()[1] < max(ends) + 0.5
    assert any(text.get_text().startswith("↑ up to") for text in axes.texts)


@pytest.mark.parametrize(("name", "start"), [("loss.png", b"\x89PNG"), ("loss.SVG", b"<?xml")])
def test_the_loss_curve_is_saved_as_a_file_the_same_each_time(tmp_path: Path, name: str, start: bytes) -> None:
    folder = make_run(tmp_path / "run", steps=60)
    target = save_loss_curve(folder, tmp_path / "new" / name)
    first = target.read_bytes()
    assert first.startswith(start)
    assert save_loss_curve(folder, target).read_bytes() == first


def test_a_loss_curve_that_cannot_be_saved_says_why(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=60)
    with pytest.raises(UsageError, match=r"loss\.pdf is neither \.png nor \.svg"):
        save_loss_curve(folder, tmp_path / "loss.pdf")
    with pytest.raises(ShoestringError, match="cannot be written"):
        save_loss_curve(folder, folder / "config.toml" / "loss.png")


def test_a_run_of_one_step_shows_its_point(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", steps=8))
    line = loss_figure(replace(run, train=run.train[:1], heldout=[])).axes[0].lines[1]
    assert (line.get_marker(), list(line.get_ydata())) == ("o", [run.train[0]["loss"]])  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_the_least_a_run_can_hold_is_drawn_without_a_warning(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=8)
    for rows in ([], [{"kind": "train", "step": 1, "seconds": 0, "loss": 3.0}], [{"kind": "train", "step": 1}]):
        write_lines(folder / "metrics.jsonl", rows)
        loss_figure(read_run(folder))
