"""Numbers as people read them: grouped, scaled, with their unit, and a dash where there is none."""

import math

from shoestring.budget.units import show_seconds

NONE = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SPACE = "\N{NO-BREAK SPACE}"


def _odd(value: float | None) -> str | None:
    """What is written for a value that is no finite number."""
    if value is None:
        return NONE
    return None if math.isfinite(value) else "not finite"


def plain(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals: '3.214'."""
    if value is not None and 1e6 <= abs(value) < math.inf:
        return power(value)
    return _odd(value) or f"{value:.{digits}f}".replace("-", "−")


def power(value: float | None) -> str:
    """A large number in powers of ten: '1.23×10¹⁵'."""
    odd = _odd(value)
    if odd or value is None:
        return odd or NONE
    if abs(value) < 1e4:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}×{ten_to(int(exponent))}"


def ten_to(exponent: int) -> str:
    """A power of ten: '10¹⁵'."""
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def scaled(value: float | None, unit: str = "") -> str:
    """A count, short: '4.19 M', '1.5 B', '512 MB', '1.5 GB'."""
    odd = _odd(value)
    if odd or value is None:
        return odd or NONE
    sign, value = "−" if value < 0 else "", float(f"{abs(value):.3g}")
    for size, prefix in _SCALES:
        if value >= size:
            short = f"{prefix}{unit}" if unit or prefix != "G" else "B"  # of tokens and parameters people say billions
            return f"{sign}{_three_digits(value / size)}{_SPACE}{short}"
    return f"{sign}{value:.0f}" + (f"{_SPACE}{unit}" if unit else "")


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f}"


def time(value: float | None) -> str:
    """A duration: '12.3 s', '2m 05s'."""
    return _odd(value) or show_seconds(value or 0.0).replace(" ", _SPACE)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage: '99.8 %'."""
    return _odd(share) or f"{(share or 0.0) * 100:.{digits}f}{_SPACE}%".replace("-", "−")


def amount(resource: str, value: float | None) -> str:
    """An amount of a budget's resource, with its unit."""
    if value is None:
        return NONE
    if resource == "seconds":
        return time(value)
    if resource == "flops":
        return f"{power(value)}{_SPACE}FLOPs"
    if resource == "bytes":
        return scaled(value, "B")
    if resource == "dollars":
        return _odd(value) or f"${value:.2f}"
    return f"{scaled(value)}{_SPACE}{resource}"
