"""The figure of a law of parameters and tokens: losses of the runs and the fitted curves, a panel for each kind of model."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shoestring.plan.law import Fitted
from shoestring.report.drawing import COLOUR, SERIES, UNIT, label_ends, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 430, 330
"""Of a panel."""


@style()
def law_figure(fits: Mapping[str, Fitted]) -> "Figure":
    """Held-out loss over training tokens, both on logarithmic axes, a line for each size, a panel for each of `fits` by title.

    Points are runs; lines are the fitted law. All panels have the same axes. Raises: ValueError where there is no fit.
    """
    from matplotlib.figure import Figure

    if not fits:
        raise ValueError("no fit to draw")
    figure = Figure(figsize=(len(fits) * WIDTH / UNIT, HEIGHT / UNIT), facecolor="none")
    tokens, losses = ([v for fit in fits.values() for v in fit.rows.column(name)] for name in ("tokens", "loss"))
    for number, (title, fit) in enumerate(fits.items()):
        left = (number * WIDTH + 48) / (len(fits) * WIDTH)
        axes = figure.add_axes((left, 0.15, (WIDTH - 130) / (len(fits) * WIDTH), 0.6), facecolor="none")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(min(tokens) / 1.15, max(tokens) * 1.15)
        axes.set_ylim(min(losses) / 1.02, max(losses) * 1.02)
        _panel(axes, title, fit)
        _lines(axes, fit)
    return figure


def _panel(axes: "Axes", title: str, fit: Fitted) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOUR["rule"])
    axes.grid(axis="y", color=COLOUR["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=5, labelsize=10.5, labelcolor=COLOUR["muted"])
    axes.xaxis.set_ticks(sorted(set(fit.rows.column("tokens").tolist())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _amount(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("training tokens", fontsize=10.5, color=COLOUR["muted"], labelpad=5)
    exponents = [f"{sign} = {_interval(fit, name)}" for name, sign in (("alpha", "α"), ("beta", "β"))]
    axes.text(0, 1.27, title, transform=axes.transAxes, fontsize=12.5, fontweight="bold", color=COLOUR["ink"])
    for height, text in ((1.16, ",  ".join(exponents)), (1.04, "nats per token; a line a number of parameters")):
        axes.text(0, height, text, transform=axes.transAxes, fontsize=10.5, color=COLOUR["muted"])


def _lines(axes: "Axes", fit: Fitted) -> None:
    low, high = (math.log(edge) for edge in axes.get_xlim())
    across = [math.exp(low + (high - low) * step / 60) for step in range(61)]
    ends = []
    parameters, tokens, losses = (fit.rows.column(name) for name in ("parameters", "tokens", "loss"))
    sizes = sorted(set(parameters.tolist()))
    for colour, size in zip(SERIES * (1 + len(sizes) // len(SERIES)), sizes, strict=False):
        curve = [fit.law.value(fit.constants, {"parameters": size, "tokens": at}) for at in across]
        axes.plot(across, curve, color=COLOUR[colour], linewidth=1.5)
        axes.plot(tokens[parameters == size], losses[parameters == size], "o", color=COLOUR[colour], markersize=4.5)
        ends.append((colour, size, curve[-1]))
    bottom, top = (math.log(edge) for edge in axes.get_ylim())
    # `label_ends` takes linear axes: heights are handed to it as they lie on this logarithmic one
    twin = axes.inset_axes((0, 0, 1, 1), facecolor="none")
    twin.set_axis_off()
    twin.set_xlim(0, 1)
    twin.set_ylim(0, 1)
    places = [(1.0, (math.log(loss) - bottom) / (top - bottom), _amount(size), colour) for colour, size, loss in ends]
    label_ends(twin, places, size=10.5)


def _interval(fit: Fitted, name: str) -> str:
    low, high = fit.intervals[name]
    return f"{fit.constants[name]:.2f} ({low:.2f} to {high:.2f})"


def _amount(value: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
