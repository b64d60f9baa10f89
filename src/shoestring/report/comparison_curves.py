"""Held-out curves of the arms of a comparison: every seed thin, the mean over seeds bold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shoestring.report.comparison_files import Compared
from shoestring.report.curves import Curve, along, finite, frame, from_middle
from shoestring.report.drawing import COLOUR, label_ends, mark_cut, name_axes, panel, style
from shoestring.report.verdict_words import shortened, usual

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NATS = "nats per token"


@dataclass(frozen=True)
class Lines:
    """An arm's curves. x: spent of the unit; y: nats per token. mean: over the seeds that finished, None without one."""

    seeds: list[Curve]
    failed: list[Curve]
    mean: Curve | None


def _mean(curves: Sequence[Curve]) -> Curve | None:
    """The mean over curves where all of them have values, at every x that one of them was measured at.

    Curves that have no stretch in common, as those of one evaluation each at its own second, have the mean of their ends.
    """
    if not curves:
        return None
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.unique(np.concatenate([x for x, _ in curves]))
    places = places[(places >= first) & (places <= last)]
    if not len(places):
        ends = np.array([(x[-1], y[-1]) for x, y in curves]).mean(axis=0)
        return ends[:1], ends[1:]
    return places, np.mean([np.interp(places, x, y) for x, y in curves], axis=0)


def arm_lines(compared: Compared, arm: str) -> Lines:
    """The held-out curves of an arm's judged runs, against the unit of the comparison."""
    drawn: dict[bool, list[Curve]] = {True: [], False: []}
    for run in compared.judged(arm):
        unit = compared.verdict.unit
        end = {unit: getattr(run, unit), "loss": run.loss}
        unmeasured = run.loss is not None and (not run.curve or run.curve[-1].get("loss") != run.loss)
        x, y = finite([*run.curve, end] if unmeasured else run.curve, unit, "loss")
        if len(x):
            order = np.argsort(x, kind="stable")
            drawn[run.stopped == "finished"].append((x[order], y[order]))
    return Lines(drawn[True], drawn[False], _mean(drawn[True]))


def outlying(lines: Mapping[str, Lines], base: str) -> frozenset[str]:
    """The arms that end so far from the base that one frame for all would flatten the others."""
    own = lines[base].mean
    ends = {arm: one.mean[1][-1] for arm, one in lines.items() if arm != base and one.mean is not None}
    if own is None or not ends:
        return frozenset()
    # differences under a hundredth of the loss never set the measure: a frame has more room than that
    least = 0.01 * abs(own[1][-1])
    sizes = {arm: max(least, abs(end - own[1][-1])) for arm, end in ends.items()}
    most = usual(list(sizes.values()))
    return frozenset(arm for arm, size in sizes.items() if size > most)


def reach(lines: Sequence[Lines]) -> float:
    """The furthest that any curve goes along its axis."""
    return max((float(x[-1]) for one in lines for x, _ in [*one.seeds, *one.failed]), default=0.0) or 1.0


def height(lines: Sequence[Lines], most: float) -> tuple[float, float]:
    """Vertical limits that show best how these curves end; `most`: where their axis ends."""
    curves = [curve for one in lines for curve in one.seeds] or [curve for one in lines for curve in one.failed]
    return frame(from_middle(curves, most))


def _all(lines: Sequence[Lines], scale: float) -> list[Curve]:
    """Every seed's curve, failed ones too, in the units of the axes."""
    return [(x / scale, y) for one in lines for x, y in [*one.seeds, *one.failed]]


def _draw(axes: "Axes", lines: Lines, scale: float, colour: str) -> None:
    """An arm's curves in a frame whose limits are set; a run that failed beyond the frame has its cross on the edge."""
    for x, y in lines.seeds:
        dot: dict[str, Any] = {"marker": "o", "markersize": 3, "markeredgewidth": 0} if len(x) == 1 else {}
        axes.plot(x / scale, y, color=COLOUR[colour], linewidth=0.8, alpha=0.45, **dot)
    for x, y in lines.failed:
        axes.plot(x / scale, y, color=COLOUR["bad"], linewidth=1, linestyle=(0, (4, 2)))
        axes.plot(x[-1:] / scale, np.clip(y[-1:], *axes.get_ylim()), "x", color=COLOUR["bad"], markersize=6,
                  markeredgewidth=1.6, clip_on=False)  # fmt: skip
    if lines.mean is not None:
        x, y = lines.mean
        axes.plot(x / scale, y, color=COLOUR[colour], linewidth=2.2, marker="o" if len(x) == 1 else "", markersize=4)


@style()
def together_figure(
    lines: Mapping[str, Lines], colours: Mapping[str, str], unit: str, *, width: float = 1000, height_of: float = 400
) -> "Figure":
    """All arms in one frame, each named at the end of its mean; width, height_of: in SVG units."""
    size = 12.0 if width >= 600 else 11.5
    room = 22 if width >= 600 else 13
    names = {arm: shortened(arm, room) for arm in lines}
    right = 0.64 * size * max(map(len, names.values())) + 20
    figure, axes = panel(width, height_of, right=right, size=size)
    most = reach(list(lines.values()))
    scale, label = along(unit, most)
    axes.set_ylim(*height(list(lines.values()), most))
    axes.set_xlim(0, 1.01 * most / scale)
    for arm, one in lines.items():
        _draw(axes, one, scale, colours[arm])
    mark_cut(axes, _all(list(lines.values()), scale), size)
    name_axes(axes, label, NATS, size)
    means = {arm: one.mean for arm, one in lines.items()}
    ends = [
        (float(mean[0][-1] / scale), float(mean[1][-1]), names[arm], colours[arm])
        for arm, mean in means.items()
        if mean
    ]
    label_ends(axes, ends, size)
    return figure


@style()
def against_base_figure(
    base: Lines, candidate: Lines, colour: str, unit: str, most: float, limits: tuple[float, float]
) -> "Figure":
    """One candidate over the base, which is grey. most: where the axis ends, in base units. limits: in nats."""
    figure, axes = panel(340, 230)
    scale, label = along(unit, most)
    axes.set_ylim(*limits)
    axes.set_xlim(0, 1.01 * most / scale)
    _draw(axes, base, scale, "muted")
    _draw(axes, candidate, scale, colour)
    mark_cut(axes, _all([base, candidate], scale))
    name_axes(axes, label, NATS)
    return figure
