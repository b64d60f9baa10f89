"""What there is to spend, and how much of it is gone."""

import math
from dataclasses import dataclass, fields
from typing import Any

from pydantic_core import core_schema

from shoestring.budget.ledger import Totals
from shoestring.budget.units import EXAMPLES, parse_amount, show, write_amount
from shoestring.errors import UsageError

DOLLARS = "a budget in dollars needs a price per hour, which no part supplies yet: give seconds instead"


@dataclass(frozen=True)
class Spent:
    """How far a budget is spent. progress: share in [0, 1] of the binding resource. shares: of each limited resource."""

    progress: float
    binding: str
    shares: dict[str, float]


@dataclass(frozen=True)
class Budget:
    """Limits on what a run may spend; None is no limit. The first resource to run out binds.

    seconds: wall clock. flops: floating-point operations, as the modules report them. tokens: targets trained on.
    bytes: sent over the network. dollars: reserved. Written as `Budget.parse("2m")`, or several: `"2m,20Mtok"`.
    """

    seconds: float | None = None
    flops: float | None = None
    tokens: float | None = None
    bytes: float | None = None
    dollars: float | None = None

    def __post_init__(self) -> None:
        limits = self.limits
        if not limits:
            raise UsageError(f"a budget needs at least one limit: write it like {EXAMPLES}")
        for resource, limit in limits.items():
            if not (limit > 0 and math.isfinite(limit)):
                raise UsageError(f"a budget of {limit:g} {resource} buys nothing: give more than zero")
        if self.dollars is not None:
            raise UsageError(DOLLARS)

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """A budget from amounts joined by commas or '+'. Raises: UsageError."""
        limits: dict[str, float] = {}
        for part in text.replace(",", " ").split():
            resource, amount = parse_amount(part)
            if resource in limits:
                raise UsageError(f"'{text}' limits {resource} twice")
            limits[resource] = amount
        return cls(**limits)

    @property
    def limits(self) -> dict[str, float]:
        """The limited resources and their limits, in base units."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def share(self, workers: int) -> "Budget":
        """What each of `workers` may spend that train at once: an equal part, and all of the seconds."""
        return Budget(**{name: limit if name == "seconds" else limit / workers for name, limit in self.limits.items()})

    def spent(self, totals: Totals, reserve_seconds: float = 0.0) -> Spent:
        """The spent share, where `reserve_seconds` of the time are kept back for what follows training.

        Tokens and FLOPs are those retained in the model (a run that was killed and resumed repeats some: the repeated
        ones are spent but taught nothing that is still there); seconds and bytes are all that were spent.
        """
        gone = {"seconds": totals.wall_clock, "flops": totals.flops, "tokens": totals.tokens, "bytes": totals.sent}
        shares = {}
        for resource, limit in self.limits.items():
            available = max(limit - reserve_seconds, 1e-9) if resource == "seconds" else limit
            shares[resource] = gone[resource] / available
        binding = max(shares, key=lambda resource: shares[resource])
        return Spent(min(shares[binding], 1.0), binding, shares)

    def __str__(self) -> str:
        return " or ".join(show(resource, limit) for resource, limit in self.limits.items())

    def write(self) -> str:
        """The text `parse` reads back as the same budget."""
        return ",".join(write_amount(resource, limit) for resource, limit in self.limits.items())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        def read(value: Any) -> "Budget":
            if isinstance(value, Budget):
                return value
            try:
                return cls.parse(value if isinstance(value, str) else f"{value}")
            except UsageError as error:
                raise ValueError(str(error)) from None

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(lambda budget: budget.write())
        )
