"""One shape for whatever an arm did, so that one judgement serves arms that train and arms that decode.

An arm is a way to do something. At a seed it does it once, on the same items as every other arm, and an `ArmOutcome` says how it
went. What is compared at which cost is said once, by `Terms`:

| arms | items | hold | judge | keep |
| --- | --- | --- | --- | --- |
| ways to train | none: the seed is the item | the budget: seconds, FLOPs or tokens | loss, by difference | nothing |
| ways to decode | prompts | nothing | seconds a written token, by ratio | the text, or its loss |

Pairs are (seed, item). A bench makes the outcomes of a seed, all arms and items in turns. The statistics are those of
`statistics.paired`, over items where there are some: what an item does at several seeds is one thing, its mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from shoestring.compare.design import Design
from shoestring.compare.record import RunRecord
from shoestring.errors import UsageError

TEXT = "text"
"""What `Terms.keep` names where each text must be the same to the last character."""


@dataclass(frozen=True)
class ArmOutcome:
    """What an arm did at a seed.

    arm: its name. seed: of all its chance.
    figures: what was measured, by name, of the whole.
    spent: what it took, by unit.
    items: what was measured of each item, by name, in the order of the items; none where the whole is one.
    texts: digests of what was written for each item; none where nothing is.
    failure: why it cannot be compared, in one line; '' where it can.
    """

    arm: str
    seed: int
    figures: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    failure: str = ""

    def __post_init__(self) -> None:
        numbers = [*self.figures.values(), *self.spent.values(), *(n for each in self.items.values() for n in each)]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a figure of an outcome is not finite")
        if len({len(each) for each in (*self.items.values(), *([self.texts] if self.texts else []))}) > 1:
            raise ValueError("an outcome has different numbers of items")

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from every other of a comparison."""
        return self.arm, self.seed


@dataclass(frozen=True)
class Terms:
    """What is compared, and at which cost.

    judge: the figure that decides; lower is better.
    scale: whether its differences count, or its ratios.
    hold: what each arm spends, by unit: pairs that differ by more than `tolerance` are not comparable.
    keep: what must not be given up for it: 'text', which must be the same, or a figure of which lower is better; None: nothing.
    margin: how much worse the kept figure may be. It is held where the interval of the difference ends below it.
    tolerance: as a share.
    Raises: UsageError.
    """

    judge: str
    scale: Literal["difference", "ratio"] = "difference"
    hold: Mapping[str, float] = field(default_factory=dict)
    keep: str | None = None
    margin: float | None = None
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.scale not in ("difference", "ratio"):
            raise UsageError(f"scale = '{self.scale}' is neither 'difference' nor 'ratio'")
        if self.keep in (None, TEXT):
            if self.margin is not None:
                raise UsageError("a margin is of a figure that is kept: give none, or keep a figure such as loss")
        elif self.margin is None or not 0 < self.margin < math.inf:
            raise UsageError(f"{self.keep} is kept within a margin: give one above zero")


class Bench(Protocol):
    """Makes outcomes."""

    def __call__(self, arms: Sequence[str], seed: int) -> list[ArmOutcome]:
        """What these arms do at a seed, in their order. Arms and items take turns, so that no arm has the better hour."""
        ...


def outcome_of(record: RunRecord) -> ArmOutcome:
    """A run of a trainer as an outcome."""
    figures = {"loss": record.loss, "bits_per_byte": record.bits_per_byte, "step_seconds": record.step_seconds}
    return ArmOutcome(
        record.arm,
        record.seed,
        {name: value for name, value in figures.items() if value is not None},
        {"seconds": record.seconds, "flops": record.flops, "tokens": float(record.tokens)},
        failure=record.failure,
    )


def terms_of(design: Design) -> Terms:
    """The terms of a comparison of ways to train."""
    return Terms("loss", hold={design.unit: design.amount}, tolerance=design.tolerance)
