"""The objects of a comparison's files, checked as they are read: runs, arms, comparisons and the verdict."""

from typing import Any, Literal

import pydantic

Number = float | None
Word = Literal["better", "worse", "no difference shown", "too few pairs", "not comparable"]


class LenientRecord(pydantic.BaseModel):
    """An object of the files; keys this version does not know are passed over."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class SpendingRecord(LenientRecord):
    """Amounts of each resource, in base units."""

    seconds: Number = None
    flops: Number = None
    tokens: Number = None

    def of(self, unit: str) -> float | None:
        found: float | None = getattr(self, unit)
        return found


class Level(LenientRecord):
    """Held-out losses in nats per token: mean and standard deviation over seeds, and each seed's own."""

    mean: Number = None
    sd: Number = None
    values: dict[str, Number] = {}


class Tried(LenientRecord):
    """Settings tried in tuning, and the held-out loss they came to (None: the run failed)."""

    settings: dict[str, Any]
    loss: Number = None


class TuningRecord(LenientRecord):
    """edge: whether the chosen value is the least or greatest one tried."""

    tried: list[Tried] = []
    chosen: dict[str, Any] | None = None
    edge: bool = False
    spent: SpendingRecord = SpendingRecord()


class Arm(LenientRecord):
    """One way of doing it. runs: judged and finished; failed: judged and not. reasons: why, those of tuning too.

    spent: by a finished run, on average. total_spent: by all its runs, failed ones and tuning included.
    """

    runs: int = 0
    failed: int = 0
    reasons: list[str] = []
    loss: Level = Level()
    bits_per_byte: Number = None
    spent: SpendingRecord | None = None
    step_seconds: Number = None
    peak_memory: Number = None
    parameters: Number = None
    tuning: TuningRecord | None = None
    total_spent: SpendingRecord = SpendingRecord()


class SpeedUpRecord(LenientRecord):
    """share: of the faster arm's budget, in which it reaches the other's final loss.

    ratio: how many times as fast as the base the candidate is, at least (above one) or at most (below one).
    """

    share: Number = None
    ratio: Number = None
    how: str | None = None


class Pair(LenientRecord):
    """The candidate's loss less the base's, on one seed."""

    seed: int
    difference: Number


class ComparisonRecord(LenientRecord):
    """A candidate against the base. difference: its mean loss less the base's, so less than zero is better."""

    candidate: str
    base: str
    verdict: Word
    pairs: int
    difference: Number = None
    interval: list[Number] | None = pydantic.Field(default=None, min_length=2, max_length=2)
    confidence: Number = None
    p_value: Number = None
    margin: Number = None
    standard_deviation: Number = None
    minimum_detectable_effect: Number = None
    pairs_needed: Number = None
    speed_up: SpeedUpRecord | None = None
    extra_memory: Number = None
    extra_step_seconds: Number = None
    flags: list[str] = []
    sentence: str = ""
    per_seed: list[Pair] = []

    @property
    def differences(self) -> list[float]:
        """Those of the pairs, in nats."""
        return [pair.difference for pair in self.per_seed if pair.difference is not None]

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval, where it has both ends."""
        low, high = self.interval or (None, None)
        return None if low is None or high is None else (low, high)


class MachineRecord(LenientRecord):
    """A machine, and which runs were made on it."""

    host: str
    device: str
    fingerprint: str
    runs: str


class VerdictRecord(LenientRecord):
    """What verdict.json holds. amount: what each run had to spend of `unit`, in its base unit. machines: where the runs say on
    which each was made."""

    unit: Literal["seconds", "flops", "tokens"]
    amount: float
    confidence: float
    base: str
    seeds: list[int]
    sequential: bool = False
    statement: str
    arms: dict[str, Arm]
    comparisons: list[ComparisonRecord]
    machines: list[MachineRecord] = []

    @property
    def ranked(self) -> list[ComparisonRecord]:
        """The comparisons in order of effect, the lowest loss first and those without an effect last."""

        def place(one: ComparisonRecord) -> tuple[bool, float, str]:
            return one.difference is None, one.difference or 0.0, one.candidate

        return sorted(self.comparisons, key=place)


class ArmRun(LenientRecord):
    """A line of runs.jsonl. loss: at the end. curve: held-out losses on the way, each with what was spent by then."""

    arm: str
    seed: int
    purpose: Literal["tune", "judge"]
    settings: dict[str, Any] = {}
    stopped: Literal["finished", "failed"]
    reason: str | None = None
    loss: Number = None
    seconds: Number = None
    flops: Number = None
    tokens: Number = None
    curve: list[dict[str, Number]] = []
