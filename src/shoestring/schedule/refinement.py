"""Refinement: the schedule that a past run's gradient norms call for."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json

STEPS = 1000
"""The steps of equal progress, T in the formula, to which a past run is brought."""

POINTS = 101
"""The points, a hundredth of the budget apart, that are kept of a refined schedule."""

LEAST = 20
"""The fewest measurements that a schedule is drawn from: with fewer, the median is over less than two of them."""

ENOUGH = 0.9
"""The share of its budget that the past run must have reached: a norm near the end decides the decay."""


Norm = Literal["l1", "l2"]
FIGURES: dict[Norm, str] = {"l1": "gradient_norm_1", "l2": "gradient_norm"}
"""The key of each norm in a run's metrics."""


def _measured(path: Path, number: int, line: bytes, figure: str) -> tuple[float, float] | None:
    """(progress, gradient norm) of a line of metrics; None where it is not a step of training."""
    try:
        row: Any = parse_json(line)
    except NotJson:
        raise UsageError(f"{path}, line {number}, is damaged: not JSON") from None
    if not isinstance(row, dict):
        raise UsageError(f"{path}, line {number}, is damaged: not an object")
    if row.get("kind") != "train":
        return None
    found = []
    for key, least in (("progress", 0.0), (figure, math.ulp(0.0))):
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            older = value is None and key == FIGURES["l1"] and FIGURES["l2"] in row
            more = "; a run of an older version has the 2-norm alone: give norm = 'l2'" if older else ""
            raise UsageError(
                f"{path}, line {number}, has no {key} that a schedule can be refined from: {value!r}{more}"
            )
        found.append(float(value))
    return found[0], found[1]


def gradient_norms(run: Path | str, norm: Norm = "l1") -> tuple[list[float], list[float]]:
    """The progress, rising strictly, and the gradient's 1-norm or 2-norm there, of each measured step of a run folder.

    A last line without its newline was torn by a crash and does not count; where a resumed run took a step again, the
    last time counts. Raises: UsageError where there is no such run, or its metrics are damaged, short or unfinished.
    """
    folder = Path(run)
    path = folder / "metrics.jsonl"
    if not folder.is_dir():
        raise UsageError(f"no such run: {folder}")
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no {path.name} to refine a schedule from") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    kept: list[tuple[float, float]] = []
    for number, line in enumerate(lines, start=1):
        found = _measured(path, number, line, FIGURES[norm]) if line.strip() else None
        if found is not None:
            while kept and kept[-1][0] >= found[0]:
                kept.pop()
            kept.append(found)
    if len(kept) < LEAST:
        raise UsageError(f"{path} has {len(kept)} measured steps: a schedule is refined from {LEAST} or more")
    if kept[-1][0] < ENOUGH:
        raise UsageError(f"{folder} stopped at {kept[-1][0]:.0%} of its budget: a schedule is refined from a whole run")
    return [progress for progress, _ in kept], [norm for _, norm in kept]


def cost_of(run: Path | str) -> dict[str, float]:
    """What a finished run spent, by its summary: seconds, flops, tokens.

    Raises: UsageError where it has no summary, or a damaged one.
    """
    path = Path(run) / "summary.json"
    try:
        summary: Any = parse_json(path.read_bytes())
        return {unit: float(summary[unit]) for unit in ("seconds", "flops", "tokens")}
    except (OSError, NotJson, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} does not say what the run spent: a schedule is refined from a finished run") from None


def median_filter(values: np.ndarray, width: int) -> np.ndarray:
    """The median of the `width` (odd) values about each of `values` [n]; the start is padded with the first value, the
    end by reflection."""
    half = width // 2
    padded = np.pad(np.pad(values, (half, 0), mode="edge"), (0, half), mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)


def refined_points(
    progress: list[float], norms: list[float], *, smoothing: float = 0.1, exponent: float = 1.0
) -> tuple[float, ...]:
    """The refined schedule as `POINTS` factors at equal steps of progress from 0 to 1; the largest is 1, the last 0.

    progress, norms: of the past run, as from `gradient_norms`. smoothing: width of the median filter, tau, as a share of
    the run. exponent: of the norm. Defazio, Cutkosky, Mehta & Mishchenko (2023), arXiv:2310.07831, algorithm for the
    schedule by refinement: with G_t the norm at step t of T, and hat G its median over tau T steps,

        w_t = hat G_t^-exponent,    eta_t = w_t sum_{p=t+1..T} w_p,    the schedule eta / max eta.

    The paper takes the 2-norm and an exponent of 2 for SGD, the 1-norm and an exponent of 1 for Adam, which are the defaults
    of `gradient_norms` and here. Equal norms give
    linear decay; large early norms give a warm-up; norms that rise at the end make the decay faster.
    """
    grid = np.linspace(0.0, 1.0, STEPS + 1)
    width = 2 * (int(smoothing * len(grid)) // 2) + 1
    smooth = median_filter(np.interp(grid, progress, norms), width)
    weights = (smooth.min() / smooth) ** exponent  # scaled, so that no power overflows: the schedule does not change
    after = np.append(np.cumsum(weights[::-1])[::-1][1:], 0.0)
    schedule = (weights * after)[:: STEPS // (POINTS - 1)]
    return tuple(float(factor) for factor in schedule / schedule.max())
