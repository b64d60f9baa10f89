"""The last steps of a run's processes: a band for each, coloured by phase. Own work fills a band, waiting is a thin line in it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shoestring.budget.timeline import OTHERS, OWN, WAITS, PhaseStretch
from shoestring.report.drawing import COLOUR, UNIT, panel, style
from shoestring.report.processes import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "data": "s2",
    "forward and backward": "s1",
    "optimiser": "s3",
    "communication": "s8",
    "exchange": "s4",
    "evaluation": "s6",
    "checkpoint": "s5",
    "start": "rule",
}
STEPS = 4
"""How many of the last steps are drawn."""
MOST = 16
"""Processes that are drawn at most: of more, those with the most and the least work of their own."""
_COLUMNS = 1200


def drawn(processes: Sequence[Process]) -> list[Process]:
    """Those that a figure has room for, by rank."""
    there = [process for process in processes if process.stretches]
    if len(there) <= MOST:
        return there
    by_work = sorted(there, key=lambda process: process.own)
    return sorted(by_work[: MOST // 2] + by_work[-MOST // 2 :], key=lambda process: process.rank)


def span(processes: Sequence[Process], steps: int = STEPS) -> tuple[float, float] | None:
    """(begin, end) of the last steps that all processes took, in seconds; None where there is no such step.

    No more is drawn than the shortest of the processes' memories holds.
    """
    known = [{each.step for each in process.stretches if each.phase == "forward and backward"} for process in processes]
    common = sorted(set.intersection(*known))[-steps:] if known else []
    if not common:
        return None
    within = [each for process in processes for each in process.stretches if each.step in common and each.phase in OWN]
    begin = min(each.begin for each in within)
    if len(common) > 1:  # the first may be known in part alone
        begin = max(begin, *(min(each.begin for each in process.stretches) for process in processes))
    end = max(each.end for each in within)
    return (begin, end) if end > begin else None


def strips(stretches: Sequence[PhaseStretch], begin: float, end: float) -> list[tuple[str, float, float]]:
    """(phase, begin, end) from `begin` on: the phase that fills most of each of `_COLUMNS` columns, neighbours joined."""
    width = (end - begin) / _COLUMNS
    filled: dict[str, np.ndarray] = {}
    for each in stretches:
        low, high = (min(max((at - begin) / width, 0.0), float(_COLUMNS)) for at in (each.begin, each.end))
        if high <= low:
            continue
        share = filled.setdefault(each.phase, np.zeros(_COLUMNS))
        first, last = int(low), min(int(high), _COLUMNS - 1)
        if first == last:
            share[first] += high - low
            continue
        share[first] += first + 1 - low
        share[first + 1 : last] += 1.0
        share[last] += high - last
    if not filled:
        return []
    names = list(filled)
    shares = np.stack([filled[name] for name in names])
    best = np.where(shares.sum(0) >= 0.5, shares.argmax(0), -1)
    edges = np.flatnonzero(np.diff(best)) + 1
    runs = zip([0, *edges.tolist()], [*edges.tolist(), _COLUMNS], strict=True)
    return [(names[best[low]], low * width, high * width) for low, high in runs if best[low] >= 0]


@style()
def timeline_figure(processes: Sequence[Process], *, width: float = 900) -> "Figure":
    """A band for each process over the last steps, in milliseconds. Raises: ValueError where they have no step in common."""
    from matplotlib.patches import Patch

    found = span(processes)
    if found is None:
        raise ValueError("no step that all processes took")
    begin, end = found
    size, row = 12.0, 34.0
    present = {
        each.phase for process in processes for each in process.stretches if each.end > begin and each.begin < end
    }
    named = [phase for phase in (*OWN, *WAITS, *OTHERS) if phase in present]
    columns = max(1, min(len(named), int(width // 175)))
    legend = 20.0 * -(-len(named) // columns) + 14
    left, bottom = 64.0, 40.0
    height = row * len(processes) + bottom + legend + 18
    figure, axes = panel(width, height, left=left, right=12, top=legend + 18, bottom=bottom, size=size)
    axes.grid(False)
    scale = 1000.0
    for place, process in enumerate(processes):
        by_phase: dict[str, list[tuple[float, float]]] = {}
        for phase, low, high in strips(process.stretches, begin, end):
            by_phase.setdefault(phase, []).append((scale * low, scale * (high - low)))
        for phase, bars in by_phase.items():
            tall, colour = 0.78 if phase not in WAITS else 0.22, COLOUR[COLOURS.get(phase, "rule")]
            axes.broken_barh(bars, (place - tall / 2, tall), facecolors=colour, linewidth=0)
    first = processes[0]
    marks: dict[int, float] = {}
    for each in first.stretches:
        if each.phase == "data" and begin <= each.begin < end:
            marks.setdefault(each.step, each.begin)
    for step, at in marks.items():
        axes.axvline(scale * (at - begin), color=COLOUR["rule"], linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        axes.annotate(
            f"step {step}", (scale * (at - begin), 1), (3, 3), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", fontsize=size - 1, color=COLOUR["muted"],
        )  # fmt: skip
    axes.set_ylim(len(processes) - 0.45, -0.55)
    axes.set_xlim(0, scale * (end - begin))
    axes.set_yticks(range(len(processes)), [f"rank {process.rank}" for process in processes])
    axes.tick_params(axis="y", labelcolor=COLOUR["ink"])
    axes.set_xlabel("milliseconds", fontsize=size, color=COLOUR["muted"], labelpad=5)
    handles = [Patch(facecolor=COLOUR[COLOURS[phase]], label=phase) for phase in named]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(left / width, 1.0), ncols=columns, frameon=False, fontsize=size,
        handlelength=1.0, handleheight=0.9, columnspacing=1.4, borderaxespad=0.2, labelcolor=COLOUR["ink"],
    )  # fmt: skip
    assert abs(figure.get_figheight() * UNIT - height) < 1
    return figure
