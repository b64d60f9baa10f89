"""What healing will come to, told when a small part of it is done; and what it came to."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from shoestring.errors import UsageError
from shoestring.plan.curve import extrapolate
from shoestring.plan.law import Prediction

EARLY = 0.05
"""Share of the healing budget after which its end is predicted, and at its end the part whose mean loss is the truth."""

LATEST = 0.5
"""Where that share has too few losses, more is waited for, but not beyond this one."""

BINS, LEAST = 24, 8
"""Points of the curve, at most and at least."""

Line = Mapping[str, Any]
"""A line of metrics."""


@dataclass(frozen=True)
class Healed:
    """The healing loss, in the unit of the objective.

    expected: at the end, with its interval, from the first part of the budget; None where that has too few losses.
    points: how many there were. came_to: the mean of the last `EARLY`; None where it did not get there.
    seen: the share of the budget that the prediction is from: `EARLY`, or more where that had too few losses.
    """

    expected: Prediction | None
    points: int
    came_to: float | None
    seen: float = EARLY

    def __str__(self) -> str:
        if self.expected is None:
            said = f"{self.points} losses in the first {self.seen:.0%} are too few to predict its end: {LEAST} at least"
            return said if self.came_to is None else f"{said}; it came to {self.came_to:.3f}"
        value, low, high = self.expected
        said = f"from its first {self.seen:.0%}, a final loss of {value:.3f} was predicted ({low:.3f} to {high:.3f})"
        return said if self.came_to is None else f"{said}; it came to {self.came_to:.3f}"


def healed(lines: Sequence[Line]) -> Healed:
    """What the losses of a healing run say, all of them or those of its first part.

    Progress is counted from the first step: what was spent before it, to open and to prune, is no healing.
    """
    points = _points(lines)
    if not points:
        return Healed(None, 0, None)
    early, seen = _early(points)
    late = [loss for share, loss in points if share >= 1 - EARLY]
    return Healed(_predicted(early), len(early), fmean(late) if late else None, seen)


def foretold(lines: Sequence[Line]) -> bool:
    """Whether the losses so far are those that the end is predicted from."""
    points = _points(lines)
    done = points[-1][0] if points else 0.0
    return done >= LATEST or (done >= EARLY and len(_early(points)[0]) >= LEAST)


def _points(lines: Sequence[Line]) -> list[tuple[float, float]]:
    """(share of the healing that is done, loss)."""
    losses = [line for line in lines if line["kind"] == "train"]
    begin = losses[0]["progress"] if losses else 0.0
    return [((line["progress"] - begin) / max(1 - begin, 1e-9), float(line["loss"])) for line in losses]


def _early(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], float]:
    """(the losses that the end is predicted from, the share of the healing that they are of)."""
    early = [point for point in points if point[0] <= EARLY]
    if len(early) >= LEAST:
        return early, EARLY
    early = [point for point in points[:LEAST] if point[0] <= LATEST]
    return early, max(EARLY, early[-1][0]) if len(early) == LEAST else LATEST


def _predicted(points: Sequence[tuple[float, float]]) -> Prediction | None:
    """The mean loss of the last part, of nine cases in ten within the interval."""
    if len(points) < LEAST:
        return None
    # evenly many losses to a point: each is a mean, so that noise falls where there are many
    count = min(BINS, len(points))
    edges = [round(place * len(points) / count) for place in range(count + 1)]
    parts = [points[start:stop] for start, stop in itertools.pairwise(edges)]
    shares = np.array([fmean(share for share, _ in part) for part in parts])
    losses = np.array([fmean(loss for _, loss in part) for part in parts])
    try:
        return extrapolate(shares, losses, 1 - EARLY / 2)
    except UsageError:
        return None  # a loss that is not finite
