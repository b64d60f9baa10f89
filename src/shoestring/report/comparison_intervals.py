"""The interval plot: every candidate's difference to the base, with its interval and the pairs it rests on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoestring.report.drawing import COLOUR, name_axes, panel, style
from shoestring.report.verdict_records import ComparisonRecord
from shoestring.report.verdict_words import look, shortened, signed, usual

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NARROW = 600
_SPACE = "\N{NO-BREAK SPACE}"
"""A page runs plain spaces together, in its drawings too."""


def _extent(one: ComparisonRecord) -> list[float]:
    """All that a row shows, in nats."""
    known = [] if one.difference is None else [one.difference]
    return [*known, *(one.ends or ()), *one.differences]


def margin(rows: Sequence[ComparisonRecord]) -> float | None:
    """Nats up to which a difference does not matter, where that was set."""
    return max((one.margin for one in rows if one.margin is not None), default=None)


def limits(rows: Sequence[ComparisonRecord]) -> tuple[float, float]:
    """The horizontal frame: zero, the margin and every row, but for rows that dwarf the others."""
    extents = [extent for extent in map(_extent, rows) if extent]
    if not extents:
        return -0.1, 0.1
    near = margin(rows) or 0.0
    most = usual([max(map(abs, extent)) for extent in extents])
    kept = [value for extent in extents if max(map(abs, extent)) <= most for value in extent]
    low, high = min(-near, *kept), max(near, *kept)
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _beyond(axes: "Axes", extent: Sequence[float], place: int, colour: str) -> None:
    """A chevron on each edge that a row runs past."""
    low, high = axes.get_xlim()
    for edge, marker, past in ((low, "<", min(extent) < low), (high, ">", max(extent) > high)):
        if past:
            axes.plot([edge], [place], marker, color=COLOUR[colour], markersize=6, clip_on=False)


@style()
def interval_figure(rows: Sequence[ComparisonRecord], *, width: float = 1000) -> "Figure":
    """A row for each comparison, top to bottom: the difference in held-out loss, its interval, its pairs; behind them, where
    a margin was set, the differences within it.

    The verdict is in the colour, in the shape of the mark and in words. width: in SVG units; a narrow figure has the
    names above their rows, a wide one beside them.
    """
    narrow = width < _NARROW
    size = 11.5 if narrow else 12.5
    longest = min(26, max(len(one.candidate) for one in rows))
    # 0.58 of its size is about the width of a letter of the page's font
    left, right = (6.0, 6.0) if narrow else (0.58 * size * longest + 22, 224.0)
    tall = 52 if narrow else 38
    figure, axes = panel(width, tall * len(rows) + 66, left=left, right=right, top=4, bottom=62, size=size)
    axes.grid(False)
    axes.grid(axis="x", color=COLOUR["grid"], linewidth=0.8)
    axes.set_xlim(*limits(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    near = margin(rows)
    if near is not None:
        axes.axvspan(-near, near, color=COLOUR["grid"], alpha=0.5, linewidth=0)
    axes.axvline(0, color=COLOUR["ink"], linewidth=1.2)
    for place, one in enumerate(rows):
        _row(axes, one, place, narrow, size, longest)
    axes.set_yticks([])
    base = shortened(rows[0].base, 20)
    words = f"difference in held-out loss from {base}, nats per token"
    name_axes(axes, f"{words}\n← the candidate is better{8 * _SPACE}the candidate is worse →", "", size)
    return figure


def _row(axes: "Axes", one: ComparisonRecord, place: int, narrow: bool, size: float, longest: int) -> None:
    shown = look(one)
    colour = COLOUR[shown.colour]
    if one.ends:
        axes.plot(one.ends, [place, place], color=colour, linewidth=2.4, solid_capstyle="butt")
        for end in one.ends:
            axes.plot([end, end], [place - 0.11, place + 0.11], color=colour, linewidth=1.6)
    axes.plot(one.differences, [place + 0.27] * len(one.differences), "o", color=colour, markersize=4.2, alpha=0.5,
              markeredgewidth=0)  # fmt: skip
    if one.difference is not None:
        axes.plot([one.difference], [place], shown.marker, color=colour, markersize=8.5, markeredgewidth=2,
                  markerfacecolor=COLOUR["paper"] if shown.hollow else colour)  # fmt: skip
    extent = _extent(one)
    if extent:
        _beyond(axes, extent, place, shown.colour)
    name = shortened(one.candidate, longest)
    word = shown.word if one.difference is None else f"{signed(one.difference)}{2 * _SPACE}{shown.word}"
    at: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center",
                          "fontsize": size, "annotation_clip": False}  # fmt: skip
    if narrow:
        at["bbox"] = {"facecolor": COLOUR["paper"], "edgecolor": "none", "pad": 0.6}
        axes.annotate(name, (0, place - 0.33), (0, 0), color=COLOUR["ink"], fontweight="bold", **at)
        axes.annotate(word, (1, place - 0.33), (0, 0), ha="right", color=colour, **at)
    else:
        axes.annotate(name, (0, place), (-14, 0), ha="right", color=COLOUR["ink"], **at)
        axes.annotate(word, (1, place), (14, 0), color=colour, fontweight="bold", **at)
