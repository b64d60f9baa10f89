"""Tuning curves: the loss an arm came to at each setting tried, and which was chosen."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shoestring.report.drawing import COLOUR, SERIES, label_ends, name_axes, panel, style
from shoestring.report.verdict_records import Tried, TuningRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def short(value: Any) -> str:
    """A setting as one would type it: '3e-4', '0.02', 'cosine'."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    rounded = float(f"{value:.3g}")
    if rounded and not 0.01 <= abs(rounded) < 1e5:
        return np.format_float_scientific(rounded, trim="-", exp_digits=1).replace("e+", "e")
    return f"{rounded:g}"


def _exact(value: Any) -> str:
    return json.dumps(value, default=str)


def settings(chosen: dict[str, Any] | None) -> str:
    """'lr = 3e-4, beta2 = 0.95'."""
    return ", ".join(f"{key} = {short(value)}" for key, value in (chosen or {}).items())


def varied(tried: Sequence[Tried]) -> list[str]:
    """The keys that tell the tries apart, in the order given: neither one that was the same in all of them nor one that
    follows from those before it, as two learning rates that are scaled together."""
    keys: list[str] = []
    combinations = 1
    for key in dict.fromkeys(key for one in tried for key in one.settings):
        found = len({tuple(_exact(one.settings.get(each)) for each in (*keys, key)) for one in tried})
        if found > combinations:
            keys, combinations = [*keys, key], found
    return keys


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ceiling(losses: Sequence[float]) -> float:
    """Where the frame ends: a loss far above the better half would flatten what the choice was made between."""
    least, middle = min(losses), float(np.median(losses))
    room = max(8 * (middle - least), 0.02 * abs(least), 1e-3)
    return min(max(losses), least + room)


def _places(values: Sequence[Any]) -> dict[str, tuple[float, str]]:
    """(place along the axis, as written) of each distinct value, in order; to scale where they are numbers."""
    distinct = {_exact(value): value for value in values}
    if not all(_number(value) for value in distinct.values()):
        return {key: (float(place), short(value)) for place, (key, value) in enumerate(distinct.items())}
    logarithmic = all(value > 0 for value in distinct.values())
    return {
        key: (math.log10(value) if logarithmic else float(value), short(value))
        for key, value in sorted(distinct.items(), key=lambda pair: pair[1])
    }


@style()
def tuning_figure(tuning: TuningRecord) -> "Figure":
    """Held-out loss against the first setting varied, to a logarithmic scale where it is positive; the choice ringed.

    Other settings varied beside it make a line each. A try that failed is a cross on the upper edge, one far above the
    rest an arrow there. tuning: with at least one try.
    """
    tried = tuning.tried
    keys = varied(tried) or list(tried[0].settings)[:1]
    across, others = (keys[0] if keys else ""), keys[1:]
    lines: dict[str, list[Tried]] = {}
    for one in tried:
        lines.setdefault(settings({key: one.settings.get(key) for key in others}), []).append(one)
    right = 92.0 if others else 20.0
    figure, axes = panel(340, 220, right=right, bottom=40)
    places = _places([one.settings.get(across) for one in tried])
    losses = [one.loss for one in tried if one.loss is not None]
    ceiling = _ceiling(losses) if losses else 1.0
    low = min(losses, default=0.0)
    room = 0.14 * (ceiling - low) or max(0.01, 0.01 * abs(low))
    axes.set_ylim(low - room, ceiling + room)
    ends = []
    for index, (name, group) in enumerate(sorted(lines.items())):
        colour = SERIES[index % len(SERIES)]
        group = sorted(group, key=lambda one: places[_exact(one.settings.get(across))][0])
        points = [(places[_exact(one.settings.get(across))][0], one.loss) for one in group]
        good = [(x, y) for x, y in points if y is not None]
        axes.plot([x for x, _ in good], [y for _, y in good], "o-", color=COLOUR[colour], linewidth=1.5, markersize=4.5)
        marks = [(x, "^", colour) for x, y in good if y > ceiling + room]
        marks += [(x, "x", "bad") for x, y in points if y is None]
        for x, marker, tint in marks:
            axes.plot([x], [1], marker, color=COLOUR[tint], markersize=6, markeredgewidth=1.6, clip_on=False,
                      transform=axes.get_xaxis_transform())  # fmt: skip
        if others and good:
            ends.append((good[-1][0], min(good[-1][1], ceiling), name.replace(", ", "\n"), colour))
        for (x, y), one in zip(points, group, strict=True):
            if one.settings == tuning.chosen and y is not None:
                edge = "bad" if tuning.edge else "ink"
                axes.plot([x], [y], "o", markersize=13, markerfacecolor="none", markeredgecolor=COLOUR[edge],
                          markeredgewidth=1.8, clip_on=False)  # fmt: skip
    ticks = list(places.values())
    first, last = ticks[0][0], ticks[-1][0]
    reach = (last - first) or 1.0
    axes.set_xlim(first - 0.08 * reach, last + 0.08 * reach)
    kept = _legible(ticks, (340 - 44 - right) / 1.16)
    axes.set_xticks([place for place, _ in kept], [word for _, word in kept])
    label_ends(axes, ends, 10.5)
    name_axes(axes, across, "nats per token")
    return figure


def _legible(ticks: Sequence[tuple[float, str]], width: float) -> list[tuple[float, str]]:
    """The (place, word)s whose words do not run into one another; width: from first to last, in SVG units."""
    first, reach = ticks[0][0], (ticks[-1][0] - ticks[0][0]) or 1.0
    kept: list[tuple[float, str]] = []
    edge = -math.inf
    for place, word in ticks:
        middle, half = width * (place - first) / reach, 3.6 * len(word)
        if middle - half >= edge:
            kept.append((place, word))
            edge = middle + half + 8
    return kept
