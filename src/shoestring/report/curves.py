"""The numbers behind a curve: its finite points, a smoothed line, a thinned one, and the frame that shows it best."""

import math
from collections.abc import Sequence

import numpy as np

from shoestring.json_files import Row
from shoestring.report import quantities
from shoestring.report.run_files import column

Curve = tuple[np.ndarray, np.ndarray]
"""x [n] and y [n], float64."""

_EARLY = 0.08
"""The share of a curve that does not set the height of its frame: a loss falls too fast there to show the rest."""


def finite(rows: Sequence[Row], across: str, up: str) -> Curve:
    """The points at which both columns are finite numbers."""
    x, y = column(rows, across), column(rows, up)
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good]


def broken(rows: Sequence[Row], across: str, up: str) -> np.ndarray:
    """The x [n] at which a value was recorded that is not finite."""
    x = column(rows, across)
    recorded = np.array([row.get(up) is not None for row in rows], dtype=bool)
    return x[recorded & ~np.isfinite(column(rows, up)) & np.isfinite(x)]


def window(points: int, share: int = 50) -> int:
    """How many of a curve's points its smoothed line averages: a fiftieth of them, or another share."""
    return max(1, points // share)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The centred mean over `window` values, over fewer at the two ends. values: [n], all finite."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    # at the steep beginning the window shrinks on both sides, since a lopsided mean would bend the curve there;
    # at the flat end it keeps its past side, so the last value is still a mean
    half = np.minimum(middle, window // 2)
    first, beyond = middle - half, np.minimum(middle + half + 1, len(values))
    return (sums[beyond] - sums[first]) / (beyond - first)


def thin(values: np.ndarray, points: int) -> np.ndarray:
    """Indices of about `points` of [n] values, at most, that keep the extremes of every stretch, and both ends."""
    if len(values) <= points:
        return np.arange(len(values))
    kept = [0, len(values) - 1]
    for stretch in np.array_split(np.arange(len(values)), points // 2):
        kept += [int(stretch[np.argmin(values[stretch])]), int(stretch[np.argmax(values[stretch])])]
    return np.unique(kept)


def frame(curves: Sequence[Curve], floor: float | None = None) -> tuple[float, float]:
    """The vertical limits that show best what follows a curve's first steep fall; `floor` fixes the lower one.

    curves: x from zero on, which is where a run begins.
    """
    late = [y[x >= _EARLY * x.max()] for x, y in curves if len(x)]
    if not late:
        return 0.0, 1.0
    values = np.concatenate(late)
    low, high = float(values.min()) if floor is None else floor, float(values.max())
    usual = float(np.percentile(values, 98))
    if high > 4 * usual > 0:  # a few spikes must not flatten everything else
        high = 2 * usual
    least = 0.05 * abs(high) or 1.0  # nearly level values are shown level, not blown up to fill the frame
    short = max(0.0, least - (high - low)) / 2
    room = short + 0.06 * max(high - low, least)
    return low - (room if floor is None else 0.0), high + room


def from_middle(curves: Sequence[Curve], most: float) -> list[Curve]:
    """What the curves have in the second half of an axis that ends at `most`; all of them where none reaches so far.

    Runs are told apart by how they end: their first half would set the height of a frame and flatten that.
    """
    late = [(x[x >= 0.5 * most], y[x >= 0.5 * most]) for x, y in curves]
    return [curve for curve in late if len(curve[0])] or list(curves)


def along(key: str, most: float) -> tuple[float, str]:
    """(what to divide by, label with unit) for an axis of progress, seconds, flops or tokens that reaches `most`."""
    if key == "progress":
        return 0.01, "share of the budget spent, %"
    if key == "seconds":
        lengths = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"), (86400.0, "days"))
        size, unit = max(pair for pair in lengths if pair[0] == 1.0 or most >= 3 * pair[0])
        return size, f"time spent, {unit}"
    exponent = math.floor(math.log10(most)) if most > 0 else 0
    if key == "tokens":
        counts = ((0, "tokens"), (3, "thousand tokens"), (6, "million tokens"), (9, "billion tokens"))
        exponent, unit = max(pair for pair in counts if pair[0] <= max(exponent, 0))
        return 10.0**exponent, f"trained on, {unit}"
    return 10.0**exponent, f"computation spent, {quantities.ten_to(exponent)} FLOPs"
