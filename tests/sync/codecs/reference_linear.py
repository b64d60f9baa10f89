"""Uniform quantisation of one group, entry by entry, in float64."""


def signs_scale(values: list[float]) -> float:
    """The 1-bit scale: the mean magnitude."""
    return sum(abs(value) for value in values) / len(values)


def best_step(values: list[float], bits: int) -> float:
    """The step by the recursions of the docstring of `best_steps`, rounds and all."""
    levels = 2**bits
    magnitudes = [abs(value) for value in values]
    if bits == 1:
        return 2 * signs_scale(values)
    longest = 2 * max(magnitudes) / levels
    step = min({2: 1.2479, 3: 0.7344, 4: 0.4201, 8: 0.0386}[bits] * sum(magnitudes) / len(magnitudes), longest)
    if not step:
        return 0.0
    for _ in range({2: 4, 3: 5, 4: 6, 8: 8}[bits]):
        if bits == 2:
            codes = [1.5 if magnitude > step else 0.5 for magnitude in magnitudes]
            step = least_squares(magnitudes, codes)
        else:
            outermost = (levels - 1) * step / 2
            out = [magnitude for magnitude in magnitudes if magnitude > outermost]
            inside = len(magnitudes) - len(out)
            step = 2 / (levels - 1) * sum(out) / (inside / (3 * (levels - 1) ** 2) + len(out))
        step = min(step, longest)
    if bits > 2:
        codes = [min(magnitude // step, levels // 2 - 1) + 0.5 for magnitude in magnitudes]
        step = min(least_squares(magnitudes, codes), longest)
    return step


def least_squares(magnitudes: list[float], codes: list[float]) -> float:
    products = sum(magnitude * code for magnitude, code in zip(magnitudes, codes, strict=True))
    return products / sum(code * code for code in codes)


def grid(values: list[float], bits: int, range_: str) -> tuple[float, float]:
    """The lowest level and the step."""
    levels = 2**bits
    if range_ == "minmax":
        return min(values), (max(values) - min(values)) / (levels - 1)
    if range_ == "absmax":
        most = max(abs(value) for value in values)
        return -most, 2 * most / (levels - 1)
    step = best_step(values, bits)
    return -(levels - 1) / 2 * step, step


def loss(values: list[float], low: float, step: float, bits: int) -> float:
    """The squared error where every entry takes the nearest level of a grid."""
    ladder = [low + code * step for code in range(2**bits)]
    return sum(min((value - level) ** 2 for level in ladder) for value in values)


def groups(values: list[float], shape: tuple[int, ...], scope: str, block: int) -> list[list[float]]:
    """The entries in row-major order, cut into groups."""
    if not values:
        return []
    rows = shape[0] if scope == "row" and len(shape) > 1 else 1
    width = block if scope == "block" else len(values) // rows
    return [values[start : start + width] for start in range(0, len(values), width)]
