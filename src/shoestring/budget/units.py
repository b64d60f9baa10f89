"""Amounts as people write them: 2m, 8h, 1e15flops, 20Mtok, 200MB, 4GiB; and back again."""

import math
import re

from shoestring.errors import UsageError

_SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "m": 60.0, "min": 60.0, "minutes": 60.0, "h": 3600.0, "d": 86400.0}
_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_NUMBER = re.compile(r"\s*((?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def _units() -> dict[str, tuple[str, float]]:
    """Every unit as written -> (resource, how many of its base unit)."""
    units = {name: ("seconds", size) for name, size in _SECONDS.items()}
    for prefix, size in _PREFIX.items():
        for word in ("flops", "flop", "FLOPs", "FLOPS", "FLOP"):
            units[prefix + word] = ("flops", size)
        for word in ("tok", "tokens"):
            units[prefix + word] = ("tokens", size)
        if prefix != "B":
            units[prefix + "B"] = ("bytes", size)
    units |= {prefix + "B": ("bytes", size) for prefix, size in _BINARY.items()}
    units |= dict.fromkeys(("usd", "USD", "dollars"), ("dollars", 1.0))
    return units


UNITS = _units()
EXAMPLES = "2m, 8h, 1e15flops, 20Mtok, 200MB"


LONGEST = 64
"""Characters of an amount; more are no amount that anyone means."""


def parse_amount(text: str) -> tuple[str, float]:
    """(resource, amount in its base unit: seconds, flops, tokens, bytes, dollars). Raises: UsageError."""
    if len(text) > LONGEST:
        raise UsageError(f"'{text[:LONGEST]}...' is too long for an amount: write it like {EXAMPLES}")
    found = _NUMBER.fullmatch(text)
    if not found:
        raise UsageError(f"'{text}' is not an amount: write it like {EXAMPLES}")
    number, unit = found.groups()
    if not unit:
        raise UsageError(f"'{text}' has no unit: write it like {EXAMPLES}")
    if unit not in UNITS:
        raise UsageError(f"'{text}' has an unknown unit, '{unit}': write it like {EXAMPLES}")
    resource, size = UNITS[unit]
    amount = float(number) * size
    if not math.isfinite(amount):
        raise UsageError(f"'{text}' is more than can be counted")
    return resource, amount


def parse_memory(text: str) -> float:
    """Bytes of memory, written like 4GB or 4GiB. Raises: UsageError."""
    resource, amount = parse_amount(text)
    if resource != "bytes":
        raise UsageError(f"'{text}' is not a size of memory: write it like 4GiB")
    return amount


def _short(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}"


def show(resource: str, amount: float) -> str:
    """An amount for people: '2m 0s', '20 Mtok', '1.5e+15 FLOPs', '200 MB'."""
    if resource == "seconds":
        return show_seconds(amount)
    if resource == "flops":
        return f"{_short(amount)} FLOPs"
    if resource == "dollars":
        return f"${amount:.2f}"
    word = "tok" if resource == "tokens" else "B"
    for prefix in ("T", "G", "M", "k"):
        if amount >= _PREFIX[prefix]:
            return f"{_short(amount / _PREFIX[prefix])} {prefix}{word}"
    return f"{amount:.0f} {word}"


def show_seconds(seconds: float) -> str:
    """'850 ms', '12.3 s', '2m 05s', '3h 20m', '45 days', '12 years'."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m {int(seconds % 60):02d}s"
    if seconds < 30 * 86400:
        return f"{int(seconds // 3600)}h {int(seconds % 3600 // 60):02d}m"
    if seconds < 730 * 86400:
        return f"{seconds / 86400:.0f} days"
    return f"{seconds / (365.25 * 86400):,.3g} years" if seconds < 1e12 else f"{seconds / (365.25 * 86400):.2g} years"


def write_amount(resource: str, amount: float) -> str:
    """An amount as `parse_amount` reads it back exactly."""
    unit = {"seconds": "s", "flops": "flops", "tokens": "tok", "bytes": "B", "dollars": "usd"}[resource]
    number = str(int(amount)) if amount == int(amount) and amount < 1e15 else repr(amount)
    return f"{number}{unit}"
