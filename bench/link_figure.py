"""The figure of slow_link.py: seconds to finish the tokens over the rate of the links, measured beside the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path

from shoestring.report.drawing import COLOUR, SERIES, label_ends, name_axes, panel, save, style


@dataclass(frozen=True)
class Curve:
    """One way to train. model: (rate in Mbit/s, seconds) along the line. points: the same as measured; whether all the steps
    were taken, or the rest was worked out from some."""

    name: str
    model: Sequence[tuple[float, float]]
    points: Sequence[tuple[float, float, bool]]


@style()
def draw(curves: Sequence[Curve], tokens: int, target: Path) -> None:
    """Write `target`, an SVG."""
    figure, axes = panel(720, 400, left=56, right=180, top=44)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = []
    for curve, series in zip(curves, SERIES, strict=False):
        rates, seconds = [rate for rate, _ in curve.model], [taken for _, taken in curve.model]
        axes.plot(rates, seconds, color=COLOUR[series], linewidth=1.6)
        for rate, measured, whole in curve.points:
            face = COLOUR[series] if whole else COLOUR["paper"]
            axes.plot([rate], [measured], "o", color=COLOUR[series], markerfacecolor=face, markersize=6.5)
        ends.append((rates[-1], seconds[-1], curve.name, series))
    marks = sorted({rate for curve in curves for rate, _, _ in curve.points})
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [tick for power in range(6) for tick in (10**power, 2 * 10**power, 5 * 10**power) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    name_axes(
        axes,
        "rate of each worker's link, Mbit/s each way",
        f"seconds to train on {tokens:,} tokens: lines are the model; hollow points, the rest of the steps worked out",
    )
    axes.set_ylim(low, high)
    # the column of labels is spread in axes units: heights are given there, as the axis is logarithmic
    span = log10(high) - log10(low)
    placed = [(x, low + (high - low) * (log10(y) - log10(low)) / span, text, series) for x, y, text, series in ends]
    label_ends(axes, placed, size=11)
    with open(target, "wb") as file:
        save(figure, file, "svg")
