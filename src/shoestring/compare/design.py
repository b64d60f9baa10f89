"""What is compared with what, at what cost, how often."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shoestring.compare.record import settings_text
from shoestring.compare.statistics import LEAST_PAIRS
from shoestring.errors import UsageError

Unit = Literal["seconds", "flops", "tokens"]
UNITS: tuple[Unit, ...] = ("seconds", "flops", "tokens")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Design:
    """A comparison, settled before its first run.

    arms: names; the first is the base, against which each other is judged. seeds: judged, each by every arm. unit, amount:
    the budget of every run. tuning: arm -> the settings to try, {tuned key: value} each; every arm tries the same number,
    since the arm with more tries is flattered. tuning_seed: of the tuning trials. It must not be judged: the setting
    chosen there was in part lucky there, and judging it again on the same luck would favour the arm whose trials are the
    noisiest. confidence: of the interval of each comparison. until_decided: add seeds until every comparison is decided,
    at most this many in all (None: `seeds` and no more). tolerance: the share by which the spending of two runs may
    differ in `unit` and still count as equal. margin: the share of the base's loss up to which a difference does not matter;
    set before the runs, as what it excludes is worth nothing once they are seen. charged: arm -> what was spent before, in
    `UNITS`, on what it is made from, as on the run that a refined schedule is drawn from. unlike_machines: runs at equal seconds
    count although the machines they were made on are not alike. Raises: UsageError.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    unit: Unit
    amount: float
    tuning: Mapping[str, tuple[Settings, ...]]
    tuning_seed: int
    confidence: float = 0.95
    until_decided: int | None = None
    tolerance: float = 0.01
    margin: float | None = None
    charged: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unlike_machines: bool = False

    def __post_init__(self) -> None:
        if len(self.arms) < 2:
            raise UsageError("a comparison needs a base and at least one candidate")
        for arm in self.arms:
            if not arm or self.arms.count(arm) > 1:
                raise UsageError(f"two arms are called '{arm}'" if arm else "an arm has no name")
        if not self.seeds:
            raise UsageError("a comparison needs at least one seed")
        for seed in self.seeds:
            if self.seeds.count(seed) > 1:
                raise UsageError(f"seed {seed} is given twice")
        if self.unit not in UNITS:
            raise UsageError(f"'{self.unit}' is not a unit to compare at: {', '.join(UNITS)}")
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise UsageError(f"a budget of {self.amount:g} {self.unit} buys nothing: give more than zero")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"a confidence of {self.confidence:g} is not in [0.5, 1): 0.95 is usual")
        if not 0 <= self.tolerance < 1:
            raise UsageError(f"a tolerance of {self.tolerance:g} is not a share in [0, 1)")
        if self.margin is not None and not 0 < self.margin < 1:
            raise UsageError(f"a margin of {self.margin:g} is not a share in (0, 1): 0.005 is half a percent")
        least = max(LEAST_PAIRS, len(self.seeds))
        if self.until_decided is not None and self.until_decided < least:
            raise UsageError(f"until_decided = {self.until_decided} is too few seeds: give {least} or more")
        self._check_tuning()
        for arm in self.charged:
            if arm not in self.arms:
                raise UsageError(f"a cost is charged to '{arm}', which is not an arm: {', '.join(self.arms)}")

    def _check_tuning(self) -> None:
        for arm in self.tuning:
            if arm not in self.arms:
                raise UsageError(f"settings are given for '{arm}', which is not an arm: {', '.join(self.arms)}")
        for arm in self.arms:
            trials, allowance = self.trials(arm), self.trials(self.base)
            if len(trials) != len(allowance):
                raise UsageError(
                    f"every arm has the same tuning allowance: '{arm}' has {len(trials)} settings to try, "
                    f"'{self.base}' {len(allowance)}"
                )
            try:
                texts = [settings_text(settings) for settings in trials]
            except (TypeError, ValueError) as error:
                raise UsageError(f"a setting of '{arm}' cannot be written down: {error}") from None
            for place, text in enumerate(texts):
                if text in texts[:place]:
                    raise UsageError(f"'{arm}' tries {text} twice")
        if self.tuned and self.tuning_seed in self.seeds:
            raise UsageError(
                f"seed {self.tuning_seed} is both tuned on and judged: judge on others, as it looks better there"
            )

    @property
    def base(self) -> str:
        return self.arms[0]

    def against(self, base: str) -> "Design":
        """The same comparison with another of its arms as the base. Raises: UsageError for an arm that it has not, and
        where seeds were added until the comparisons with its own base were decided."""
        if base not in self.arms:
            raise UsageError(f"'{base}' is no arm of the comparison: {', '.join(self.arms)}")
        if self.sequential:
            raise UsageError(
                f"seeds were added until the comparisons with {self.base} were decided: no other base is fair"
            )
        return replace(self, arms=(base, *(arm for arm in self.arms if arm != base)))

    @property
    def candidates(self) -> tuple[str, ...]:
        return self.arms[1:]

    @property
    def tuned(self) -> bool:
        """Whether settings are chosen by trials."""
        return bool(self.trials(self.base))

    @property
    def sequential(self) -> bool:
        """Whether seeds are added until the comparisons are decided."""
        return self.until_decided is not None

    @property
    def cap(self) -> int:
        """The most seeds that are judged."""
        return self.until_decided or len(self.seeds)

    def trials(self, arm: str) -> tuple[Settings, ...]:
        """The settings that `arm` tries; none where nothing is tuned."""
        return tuple(self.tuning.get(arm, ()))

    def added_seeds(self) -> Iterator[int]:
        """The seeds that may be added, in order: those after the last one, without any that is planned or tuned on."""
        seed = self.seeds[-1]
        for _ in range(self.cap - len(self.seeds)):
            seed += 1
            while seed in self.seeds or (self.tuned and seed == self.tuning_seed):
                seed += 1
            yield seed

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Every seed that may be judged, in the order in which they are."""
        return (*self.seeds, *self.added_seeds())
