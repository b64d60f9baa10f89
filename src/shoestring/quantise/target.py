"""What a quantised model is to take: bits a weight, bytes of its file, or time for a token."""

import re
from dataclasses import dataclass
from typing import Literal

from shoestring.errors import UsageError

Unit = Literal["bits", "bytes", "seconds"]

WRITTEN = re.compile(r"([0-9]*\.?[0-9]+)\s*([a-z/]*)", re.IGNORECASE)
UNITS: dict[str, tuple[Unit, float]] = {
    "bit": ("bits", 1.0),
    "bits": ("bits", 1.0),
    "b": ("bytes", 1.0),
    "kb": ("bytes", 1e3),
    "mb": ("bytes", 1e6),
    "gb": ("bytes", 1e9),
    "kib": ("bytes", 2.0**10),
    "mib": ("bytes", 2.0**20),
    "gib": ("bytes", 2.0**30),
    "ms/token": ("seconds", 1e-3),
    "s/token": ("seconds", 1.0),
}
FORMS = "4bit, 3.5bit, 80MiB, 3ms/token or loss+0.01"


@dataclass(frozen=True)
class BitTarget:
    """unit: of what. amount: at most so much: bits of a code on average, bytes of the file, seconds of a token of one row."""

    unit: Unit
    amount: float

    @classmethod
    def parse(cls, text: str) -> "BitTarget":
        """Raises: UsageError for what is no target."""
        found = WRITTEN.fullmatch(text.strip())
        if not found or found[2].lower() not in UNITS or float(found[1]) <= 0:
            raise UsageError(f"--to {text} is no target: say {FORMS}")
        unit, scale = UNITS[found[2].lower()]
        if unit == "bits" and not 1 <= float(found[1]) <= 8:
            raise UsageError(f"--to {text}: codes have 1 to 8 bits")
        return cls(unit, float(found[1]) * scale)

    @property
    def whole(self) -> int | None:
        """The width that all codes can have alike, where it is bits and a whole number of them."""
        return int(self.amount) if self.unit == "bits" and self.amount == int(self.amount) else None
