"""Codebooks of one group, entry by entry, in float64."""

import math


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def nearest(value: float, levels: list[float]) -> int:
    return min(range(len(levels)), key=lambda code: (abs(value - levels[code]), code))


def quantile(values: list[float], count: int) -> list[float]:
    """Every entry `count` times over, in order, dealt to `count` equal bins: the means of these."""
    many = [value for value in sorted(values) for _ in range(count)]
    size = len(values)
    return [mean(many[start : start + size]) for start in range(0, len(many), size)]


def cell_means(values: list[float], levels: list[float]) -> list[float]:
    cells: list[list[float]] = [[] for _ in levels]
    for value in values:
        cells[nearest(value, levels)].append(value)
    return [mean(cell) if cell else level for cell, level in zip(cells, levels, strict=True)]


def deviation(values: list[float], count: int) -> list[float]:
    middle = mean(values)
    sigma = math.sqrt(sum((value - middle) ** 2 for value in values) / max(len(values) - 1, 1))
    return cell_means(values, [middle + (code - count / 2) * 6 * sigma / count for code in range(count)])


def lloyd(values: list[float], count: int) -> list[float]:
    levels = quantile(values, count)
    for _ in range(30):
        levels = cell_means(values, levels)
    return levels


LEVELS = {"quantile": quantile, "deviation": deviation, "lloyd": lloyd}
