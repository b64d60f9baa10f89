"""One choice of a plan."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlanDecision:
    """One choice. key: as in a recipe. reason: why, for people."""

    key: str
    value: Any
    reason: str
