"""The figures of a report: loss, quantities over progress, where the time went, and runs laid over each other."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoestring import atomic
from shoestring.budget.ledger import Totals
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import Row
from shoestring.report import quantities
from shoestring.report.curves import along, broken, finite, frame, from_middle, smooth, thin, window
from shoestring.report.drawing import COLOUR, DASHES, SERIES, label_ends, mark_cut, name_axes, panel, save, style
from shoestring.report.run_files import Run, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NATS = "nats per token"
OVERLAID = 20
"""Curves laid over each other are averaged over a 20th of their points: the noise of one hides the others."""
CAUSES = {
    "compute": "computing",
    "data": "reading data",
    "sync_exposed": "waiting for exchange",
    "evaluate": "evaluating",
    "checkpoint": "saving checkpoints",
    "measure": "measuring",
    "start": "starting",
    "compile": "compiling",
    "restart": "starting again",
    "idle": "idle",
    "sync_hidden": "exchange, hidden",
}
_POINTS, _TEXT = 600, 11.5
_WIDEST, _THINNEST, _WIDTHS = 2.8, 1.2, 4
"""Widths of the lines of runs laid over each other: the first, the last, and how many there are."""


def _raw(axes: "Axes", x: np.ndarray, y: np.ndarray) -> None:
    """Every value faintly; of more than can be told apart, the range of each stretch as a band."""
    if len(y) <= 2 * _POINTS:
        axes.plot(x, y, color=COLOUR["s1"], alpha=0.28, linewidth=0.8)
        return
    stretches = np.array_split(np.arange(len(y)), _POINTS // 2)
    middles = [x[stretch].mean() for stretch in stretches]
    low, high = ([edge(y[stretch]) for stretch in stretches] for edge in (np.min, np.max))
    axes.fill_between(middles, low, high, color=COLOUR["s1"], alpha=0.18, linewidth=0)


def _crosses(axes: "Axes", spots: np.ndarray) -> None:
    """A cross on the upper edge wherever a value was not a finite number."""
    kept = spots[thin(spots, 60)]
    axes.plot(kept, np.ones(len(kept)), "x", color=COLOUR["bad"], markersize=5, clip_on=False,
              transform=axes.get_xaxis_transform())  # fmt: skip


def _line(axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str = "s1", **look: Any) -> None:
    """A line through enough of the values to look the same; a point where there is only one."""
    kept = thin(y, _POINTS)
    look = {"linewidth": 1.7, "markersize": 3, **look, **({"marker": "o"} if len(y) == 1 else {})}
    axes.plot(x[kept], y[kept], color=COLOUR[colour], **look)


@style()
def loss_figure(run: Run, against: str = "seconds", *, width: float = 900, height: float = 380) -> "Figure":
    """Training loss (as recorded, faint; smoothed, bold) and held-out loss (points), in nats per token.

    against: 'seconds', 'flops', 'tokens' or 'progress'. width, height: in SVG units (CSS pixels at full size).
    """
    size = 12.0 if width >= 600 else _TEXT
    figure, axes = panel(width, height, right=66, size=size)
    raw, held = finite(run.train, against, "loss"), finite(run.heldout, against, "loss")
    most = max((float(x.max()) for x, _ in (raw, held) if len(x)), default=0.0) or 1.0
    scale, label = along(against, most)
    line = (raw[0], smooth(raw[1], window(len(raw[1]))))
    _raw(axes, raw[0] / scale, raw[1])
    _line(axes, line[0] / scale, line[1])
    axes.plot(held[0] / scale, held[1], "o-", color=COLOUR["s2"], linewidth=1, markersize=4.5,
              markeredgecolor=COLOUR["paper"], markeredgewidth=1)  # fmt: skip
    axes.set_ylim(*frame([raw, held]))
    axes.set_xlim(0, 1.01 * most / scale)
    mark_cut(axes, [(raw[0] / scale, raw[1]), (held[0] / scale, held[1])], size)
    _crosses(axes, broken(run.train, against, "loss") / scale)
    name_axes(axes, label, NATS, size)
    lines = (("training", line[1], "s1"), ("held out", held[1], "s2"))
    named = [(name, float(y[-1]), colour) for name, y, colour in lines if len(y)]
    label_ends(axes, [(1.01 * most / scale, end, f"{name}\n{end:.3f}", colour) for name, end, colour in named], size)
    return figure


@style()
def progress_figure(rows: Sequence[Row], key: str, unit: str, *, smoothed: bool = True) -> "Figure":
    """One quantity of the training steps over the share of the budget spent, smoothed over its raw values or alone."""
    figure, axes = panel(340, 220)
    x, y = finite(rows, "progress", key)
    scale, label = along("progress", 1.0)
    size, prefix = (1e3, "thousand ") if len(y) and np.median(y) >= 1e4 else (1.0, "")
    y = y / size
    line = smooth(y, window(len(y))) if smoothed else y
    if smoothed:
        _raw(axes, x / scale, y)
    _line(axes, x / scale, line)
    axes.set_ylim(*frame([(x, y)], floor=0.0))
    axes.set_xlim(0, 101)
    mark_cut(axes, [(x / scale, y)], _TEXT)
    _crosses(axes, broken(rows, "progress", key) / scale)
    axes.set_xticks([0, 25, 50, 75, 100])
    name_axes(axes, label, prefix + unit)
    return figure


def shares(totals: Totals) -> list[tuple[str, float, float | None]]:
    """(cause, seconds, share of the wall clock), the most first; idle always, hidden exchange last, without a share."""
    spent = {"idle": 0.0, **totals.seconds}
    hidden = spent.pop("sync_hidden", 0.0)
    whole = totals.wall_clock
    rows: list[tuple[str, float, float | None]] = [
        (cause, seconds, seconds / whole if whole else 0.0)
        for cause, seconds in sorted(spent.items(), key=lambda pair: (-pair[1], pair[0]))
        if seconds or cause == "idle"
    ]
    return [*rows, ("sync_hidden", hidden, None)] if hidden else rows


@style()
def time_figure(totals: Totals, *, width: float = 520) -> "Figure":
    """A bar for each cause of spending time, with its seconds and its share of the wall clock."""
    rows, size = shares(totals), 12.0
    figure, axes = panel(width, 30 * len(rows) + 8, left=138, right=118, top=4, bottom=4, size=size)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_xlim(0, max(seconds for _, seconds, _ in rows) or 1.0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for place, (cause, seconds, share) in enumerate(rows):
        colour = COLOUR["muted" if cause == "idle" else "s1"]
        hidden = {"facecolor": "none", "edgecolor": colour, "linestyle": (0, (2, 2)), "clip_on": False}
        axes.barh(place, seconds, height=0.56, **({"color": colour} if share is not None else hidden))
        text = f"{quantities.time(seconds)}  ·  {quantities.percent(share) if share is not None else 'overlaps'}"
        axes.annotate(text, (seconds, place), (8, 0), textcoords="offset points", va="center", fontsize=size)
    axes.set_yticks(range(len(rows)), [CAUSES.get(cause, cause) for cause, _, _ in rows])
    axes.tick_params(labelcolor=COLOUR["ink"])
    return figure


@style()
def overlay_figure(runs: Sequence[Run], letters: Sequence[str], kind: str, against: str) -> "Figure":
    """The loss of several runs against one resource; `kind` is 'heldout' or 'train'. Each line ends at its letter.

    The frame shows the second half of the runs best. Earlier lines are wider, so that one shows beside one drawn over it.
    """
    figure, axes = panel(340, 270, right=26)
    curves = [finite(run.heldout if kind == "heldout" else run.train, against, "loss") for run in runs]
    if kind == "train":
        curves = [(x, smooth(y, window(len(y), OVERLAID))) for x, y in curves]
    most = max((float(x.max()) for x, _ in curves if len(x)), default=0.0) or 1.0
    scale, label = along(against, most)
    ends = []
    steps = max(1, min(len(runs), _WIDTHS) - 1)
    for index, (x, y) in enumerate(curves):
        width = _WIDEST - (_WIDEST - _THINNEST) * min(index, steps) / steps
        colour = SERIES[index % len(SERIES)]
        dash = DASHES[index // len(SERIES) % len(DASHES)]
        mark = "o" if kind == "heldout" else ""
        _line(axes, x / scale, y, colour, linestyle=dash, linewidth=width, marker=mark)
        ends += [(float(x[-1] / scale), float(y[-1]), letters[index], colour)] if len(y) else []
    axes.set_ylim(*frame(from_middle(curves, most)))
    axes.set_xlim(0, 1.01 * most / scale)
    mark_cut(axes, [(x / scale, y) for x, y in curves], _TEXT)
    name_axes(axes, label, NATS)
    label_ends(axes, ends)
    return figure


def save_loss_curve(run: Path, path: Path) -> Path:
    """Draw the loss curve of a run folder to a .png or .svg file of its own; returns `path`.

    Raises: UsageError for another kind of file or a folder that is no run; ShoestringError when it cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise UsageError(f"{path.name} is neither .png nor .svg: give the figure one of these names")
    buffer = BytesIO()
    save(loss_figure(read_run(run)), buffer, kind)
    try:
        atomic.write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise ShoestringError(f"{path} cannot be written: {error.strerror}") from None
    return path
