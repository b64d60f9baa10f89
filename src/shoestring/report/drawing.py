"""The drawing board: palette, panels, labels at the ends of lines, and SVG that takes its colours from the page.

matplotlib is loaded when the first figure is drawn, and never its pyplot. A figure is drawn in the light palette;
inside a page each colour becomes a CSS variable, so the same figure is readable in light and dark.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from statistics import fmean
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {
    "paper": ("#fbfaf7", "#17181b"),
    "ink": ("#23211e", "#e9e7e2"),
    "muted": ("#6c6963", "#a19d95"),
    "rule": ("#b7b3aa", "#54534f"),
    "grid": ("#e7e4dc", "#2c2d31"),
    "mark": ("#fbedc3", "#4a3c12"),
    "bad": ("#b3261e", "#ff8a80"),
    "s1": ("#1f5f99", "#74b4ef"),
    "s2": ("#c4511b", "#f59a6c"),
    "s3": ("#2c7a4b", "#70c690"),
    "s4": ("#7a4ea3", "#c09ae8"),
    "s5": ("#987408", "#dbba4d"),
    "s6": ("#14808a", "#5ac6cf"),
    "s7": ("#b83b74", "#f08ab8"),
    "s8": ("#5d6673", "#a7b0bd"),
}
"""Colour by name: (in light, in dark). s1 to s8 are for series, in order."""

COLOUR = {name: light for name, (light, _) in PALETTE.items()}
SERIES = tuple(name for name in PALETTE if re.fullmatch(r"s\d", name))
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
UNIT = 72.0
"""Figure sizes are given in SVG user units, CSS pixels at full size: 72 to matplotlib's inch."""


@contextmanager
def style(text_as_paths: bool = False) -> Iterator[None]:
    """matplotlib's own defaults whatever the user's settings, so the same files give the same bytes."""
    import matplotlib

    settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    settings |= {"svg.fonttype": "path" if text_as_paths else "none", "svg.hashsalt": "shoestring"}
    settings |= {"font.family": ["sans-serif"], "text.color": COLOUR["ink"], "path.simplify": True}
    with matplotlib.rc_context(settings):
        yield


def panel(
    width: float,
    height: float,
    *,
    left: float = 44,
    right: float = 16,
    top: float = 24,
    bottom: float = 38,
    size: float = 11.5,
) -> tuple["Figure", "Axes"]:
    """A figure of `width` x `height` units with one quiet pair of axes inside the margins; `size`: of its text."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width / UNIT, height / UNIT), facecolor="none")
    area = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(area, facecolor="none")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOUR["rule"])
    axes.tick_params(length=0, pad=5, labelsize=size, labelcolor=COLOUR["muted"])
    axes.grid(axis="y", color=COLOUR["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(3, int(width / 80)), steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=max(3, int(height / 45)), steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def name_axes(axes: "Axes", across: str, up: str, size: float = 11.5) -> None:
    """What is measured along each axis, with units; the vertical one written level, above its axis."""
    axes.set_xlabel(across, fontsize=size, color=COLOUR["muted"], labelpad=5)
    axes.annotate(
        up, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=size, color=COLOUR["muted"]
    )


def mark_cut(axes: "Axes", curves: Sequence[tuple["np.ndarray", "np.ndarray"]], size: float = 11.5) -> None:
    """Say on the edge of the frame how far curves go beyond it: '↑ up to 9.08', '↓ down to 0.2'.

    curves: (x, y) in the units of the axes, whose limits are set already; of several, the one that goes furthest is told.
    The words stand before the first curve comes into the frame, or, where there is no room, after the last.
    """
    low, high = axes.get_ylim()
    end = axes.get_xlim()[1]
    for sign, edge, place, arrow in ((1, high, 1.0, "↑ up to"), (-1, low, 0.0, "↓ down to")):
        beyond = [(x, y) for x, y in curves if len(y) and (sign * y).max() > sign * edge]
        if not beyond:
            continue
        entries = [_entry(x, sign * y, sign * edge) for x, y in beyond]
        furthest = sign * max((sign * y).max() for _, y in beyond)
        before = min(entries) > 0.35 * end
        where = min(entries) if before else min(max(entries), end)
        before = before or where > 0.65 * end
        axes.annotate(
            f"{arrow} {furthest:.3g}", (where, place), (-8 if before else 8, -4 * sign),
            xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="right" if before else "left",
            va="top" if sign > 0 else "bottom", fontsize=size - 1, color=COLOUR["muted"],
        )  # fmt: skip


def _entry(x: "np.ndarray", y: "np.ndarray", edge: float) -> float:
    """Where a curve comes back below `edge` after its highest point; its end where it does not."""
    peak = int(y.argmax())
    inside = (y[peak:] <= edge).nonzero()[0]
    if not len(inside):
        return float(x[-1])
    after = peak + int(inside[0])
    share = (y[after - 1] - edge) / (y[after - 1] - y[after])
    return float(x[after - 1] + share * (x[after] - x[after - 1]))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1] moved as little as keeps their order and sets them `gap` apart (or evenly, where it is full).

    Least squares: less its rank times the gap, each may not fall below the one under it, so those that would are pooled
    at their mean (isotonic regression).
    """
    gap = min(gap, 1 / max(1, len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda index: (heights[index], index))
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([heights[index] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    ceiling = 1 - (len(heights) - 1) * gap
    settled = [min(max(fmean(pool), 0.0), ceiling) for pool in pools for _ in pool]
    placed = [0.0] * len(heights)
    for rank, index in enumerate(order):
        placed[index] = settled[rank] + rank * gap
    return placed


def label_ends(axes: "Axes", ends: Sequence[tuple[float, float, str, str]], size: float = 11.5) -> None:
    """Write (x, y in data, text, colour name) beside the ends of lines; of those side by side, in a column."""
    low, high = axes.get_ylim()
    across = abs(axes.get_xlim()[1] - axes.get_xlim()[0])
    tall = axes.get_position().height * axes.figure.get_figheight() * UNIT  # type: ignore[union-attr]
    lines = max((text.count("\n") + 1 for _, _, text, _ in ends), default=1)
    groups: list[list[tuple[float, float, str, str]]] = []
    for end in sorted(ends):
        if groups and end[0] - groups[-1][-1][0] < 0.08 * across:
            groups[-1].append(end)
        else:
            groups.append([end])
    for group in groups:
        heights = [min(max((y - low) / (high - low), 0.0), 1.0) for _, y, _, _ in group]
        for height, (_, _, text, colour) in zip(spread(heights, lines * size * 1.25 / tall), group, strict=True):
            axes.annotate(
                text, (group[-1][0], height), (7, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                va="center", fontsize=size, color=COLOUR[colour], fontweight="bold" if lines == 1 else "normal",
                linespacing=1.15, bbox={"facecolor": COLOUR["paper"], "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip


SIDES = ((8, 0, "left"), (-8, 0, "right"), (0, 11, "center"), (0, -11, "center"), (8, 11, "left"), (8, -11, "left"))
"""Where the text of a point may be, in points of a font from it, and how it is aligned; the first that is free is taken."""


def label_points(axes: "Axes", points: Sequence[tuple[float, float, str, str]], size: float = 11.5) -> None:
    """Write (x, y in data, text, colour name) beside points, each on a side where it covers no other text or point."""
    axes.autoscale_view()
    dots, taken = axes.transData.transform([point[:2] for point in points]), list[Any]()
    for number, (x, y, text, colour) in enumerate(points):
        others = [dot for place, dot in enumerate(dots) if place != number]
        for last, (right, up, align) in enumerate(SIDES, start=1 - len(SIDES)):
            label = axes.annotate(
                text, (x, y), (right, up), textcoords="offset points", ha=align, va="center", fontsize=size,
                color=COLOUR[colour], fontweight="bold",
            )  # fmt: skip
            box = label.get_window_extent()
            if not last or not (any(map(box.overlaps, taken)) or any(box.contains(*dot) for dot in others)):
                break
            label.remove()
        taken.append(box)


def _tag(match: re.Match[str]) -> str:
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", match[0]).replace("xlink:href", "href")
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    for name, colour in COLOUR.items():
        tag = tag.replace(colour, f"var(--{name})")
    return tag


@style()
def to_svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an element of a page, in its font and colours. name: begins every id. label: is read aloud."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().decode()
    body = text[text.index("</metadata>") + len("</metadata>") :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", body))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", body)
    body = re.sub(r"<[^>]*>", _tag, body)
    box = re.search(r'viewBox="([^"]*)"', text)
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label={quoteattr(label)}>{body}'


@style(text_as_paths=True)
def save(figure: "Figure", target: Any, kind: str) -> None:
    """The figure alone, on paper: `kind` is 'png' or 'svg', text drawn as shapes."""
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(target, format=kind, dpi=160, facecolor=COLOUR["paper"], metadata=metadata)
