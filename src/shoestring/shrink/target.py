"""What a model is to come down to, and what it is now: parameters, bytes, operations or milliseconds a token."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch

from shoestring.budget.units import show
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError

Unit = Literal["parameters", "bytes", "flops", "seconds"]

WRITTEN = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)(.*)", re.IGNORECASE)
PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30}
SHARES: dict[str, Unit] = {"": "parameters", "flops/token": "flops", "ms/token": "seconds"}
"""What a share is of, by what stands behind its x."""
FORMS = "0.7x, 0.7xms/token, 90MiB, 80Mparameters, 200Mflops/token or 4ms/token"

WEIGHT = 2
"""Bytes of a weight, as models are mostly kept: in bfloat16."""

LEAST_ROUNDS, MOST_ROUNDS, SPAN = 3, 15, 3.0
"""In which models take turns, and the seconds after which no further round begins."""

READ, TIMED = 32, 24
"""Tokens of a prompt, and tokens after it that are timed."""


@dataclass(frozen=True)
class Target:
    """unit: of what. amount: at most so much; where `relative`, that share of what it is now."""

    unit: Unit
    amount: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "Target":
        """'0.7x' (of the parameters; '0.7xms/token': of the time), or an amount of bytes, parameters, operations or seconds.

        Raises: UsageError.
        """
        found = WRITTEN.fullmatch(text.strip())
        amount, rest = (float(found[1]), found[2].strip().lower()) if found else (0.0, "")
        if found and rest.startswith("x") and (unit := SHARES.get(rest[1:].strip())):
            if not 0 < amount < 1:
                raise UsageError(f"--to {text}: a share is above 0 and below 1, as 0.7x")
            return cls(unit, amount, relative=True)
        for ending, unit, scale in (
            ("ms/token", "seconds", 1e-3),
            ("s/token", "seconds", 1.0),
            ("flops/token", "flops", 1.0),
            ("parameters", "parameters", 1.0),
            ("b", "bytes", 1.0),
        ):
            if found and rest.endswith(ending) and rest.removesuffix(ending) in PREFIXES and amount > 0:
                return cls(unit, amount * scale * PREFIXES[rest.removesuffix(ending)])  # type: ignore[arg-type]
        raise UsageError(f"--to {text} is no target: say {FORMS}")

    def of(self, whole: "Size") -> float:
        """The amount, for a model of that size."""
        return self.amount * whole.of(self.unit) if self.relative else self.amount


@dataclass(frozen=True)
class Size:
    """What a model takes.

    parameters: each once. bytes: of them, at `WEIGHT` each. flops: to write a token after `READ` others.
    seconds: to write one here, in the type that the model has; None where that was not measured.
    """

    parameters: int
    flops: int
    seconds: float | None = None

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return self.parameters * WEIGHT

    def of(self, unit: Unit) -> float:
        """One of these figures. Raises: UsageError where it was not measured."""
        found: float | None = getattr(self, unit)
        if found is None:
            raise UsageError("how long a token takes was not measured")
        return found

    def __str__(self) -> str:
        took = "" if self.seconds is None else f", {1e3 * self.seconds:.2f} ms a token"
        return f"{self.parameters:,} parameters, {show('bytes', self.bytes)} in bfloat16{took}"


def size_of(model: LanguageModule, *, timed: bool = False) -> Size:
    """What a model takes. Of a model without values all but the seconds is known. timed: write some tokens, and time them."""
    count = sum(parameter.numel() for parameter in model.parameters())
    flops = model.cost(Shape(1, 1, READ)).flops
    return Size(count, flops, seconds_per_token(model) if timed else None)


def times_in_turns(models: Sequence[LanguageModule], rounds: int | None = None) -> list[list[float]]:
    """The time of a token of each of some models, in each of the rounds in which they take turns: so that a machine which grows
    busier favours none. rounds: None: `LEAST_ROUNDS` or more, as `SPAN` has room for."""
    found: list[list[float]] = [[] for _ in models]
    began = time.monotonic()
    for done in range(rounds or MOST_ROUNDS):
        if rounds is None and done >= LEAST_ROUNDS and time.monotonic() - began > SPAN:
            break
        for model, times in zip(models, found, strict=True):
            times.append(seconds_per_token(model))
    return found


def ratio_in_turns(times: Sequence[float], whole: Sequence[float]) -> float:
    """How long a token takes beside another model's: the median over rounds of the ratio within a round, as what else a machine
    does lasts longer than one. Of two models of one shape it told 0.51 of a third's time twice, where the ratios of their least
    times were 15 % apart."""
    return median(mine / theirs for mine, theirs in zip(times, whole, strict=True))


@torch.inference_mode()
def seconds_per_token(model: LanguageModule, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median time of a pass over one token that follows others, with its logits."""
    prompt, times = torch.arange(READ)[None] % model.about.vocabulary, list[float]()
    room = min(model.about.context, READ + TIMED)
    read = max(1, min(READ, room // 2))
    cache = model.new_cache(1, room)
    model.read(Inputs(prompt[:, :read].to(model.device)), cache)
    for _ in range(room - read):
        began = clock()
        reading = model.read(Inputs(prompt[:, :1].to(model.device)), cache)
        reading.head.logits(reading.hidden[:, -1]).argmax()
        times.append(clock() - began)
    return median(times)
