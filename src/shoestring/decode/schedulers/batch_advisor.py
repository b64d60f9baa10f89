"""As many rows at a time as still pay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from shoestring.decode.row import Row
from shoestring.decode.scheduler import Room, RowReading, in_order, parted
from shoestring.method import Count, Fraction, NonNegative, method


@dataclass(frozen=True)
class Advice:
    """rows: to decode at a time. rate: tokens a second that they write. seconds: between two tokens of a row. tokens: of cache that
    they need."""

    rows: int
    rate: float
    seconds: float
    tokens: int


def advise(measured: Mapping[int, float], *, context: int, seconds: float = 0.0, least: float = 0.1) -> Advice:
    """The batch at the knee: of the measured ones, the one of the highest rate whose time is within the target and that makes good
    use of its rows, T(B) / (B T(1)) >= least, T being tokens a second. Where the latter two leave none, the smallest is taken.

    measured: seconds of a decoding pass, by its rows. context: tokens of a row, for the size of the cache.
    seconds: between two tokens of a row, at most; 0: any. least: share of what as many rows would write alone.
    """
    smallest = min(measured)
    alone = smallest / measured[smallest] / smallest
    able = [
        rows
        for rows, took in measured.items()
        if (not seconds or took <= seconds) and rows / took >= least * rows * alone * (1 - 1e-12)
    ]
    best = max(able, key=lambda rows: (rows / measured[rows], -rows), default=smallest)
    return Advice(best, best / measured[best], measured[best], best * context)


@method(
    "decode",
    kind="scheduler",
    name="batch_advisor",
    paper="Mind the Memory Gap: Unveiling GPU Bottlenecks in Large-Batch LLM Inference, arXiv:2503.08311",
    claim="throughput stops growing at a batch well below what memory holds; a batch at that knee frees the rest of it",
    cost="fewer rows while it measures",
)
class BatchAdvisor:
    """Gives no more places than the batch at which throughput stops growing.

    It begins with one row and doubles, `window` passes in which all rows decode at each size. It goes on while twice the rows
    write at least (1 + gain) times as many tokens a second, within the target for the time between tokens; then the best size
    stays. `advise` tells the same of measurements, and the cache that it needs; what is left can hold another copy of the model.

    seconds: between two tokens of a row, at most; 0: any.
    gain: of tokens a second by twice the rows, at least.
    window: passes of each size.
    """

    def __init__(self, *, seconds: NonNegative = 0.0, gain: Fraction = 0.1, window: Count = 8) -> None:
        self.seconds, self.gain, self.window = seconds, gain, window
        self.rows = 1
        """That have a place now, at most."""
        self.settled = False
        self.measured: dict[int, float] = {}
        """Median seconds of a decoding pass, by its rows."""
        self._now: list[float] = []

    def plan(self, rows: Sequence[Row], room: Room) -> list[RowReading]:
        """As `Scheduler.plan`."""
        if room.last is not None and not self.settled:
            self._note(room.last.decoding, room.last.tokens, room.last.seconds, room)
        decoding, reading, waiting = parted(rows)
        places = max(0, min(room.rows, self.rows) - len(decoding) - len(reading))
        return in_order(decoding, reading, waiting[:places], room)

    def _note(self, decoding: int, tokens: int, seconds: float, room: Room) -> None:
        """Count a pass that only decodes, with all the rows that it may have."""
        if decoding != min(self.rows, room.rows) or tokens > decoding * (1 + room.drafts):
            return
        self._now.append(seconds)
        if len(self._now) < self.window:
            return
        self.measured[decoding], self._now = median(self._now), []
        before = max((size for size in self.measured if size < decoding), default=None)
        if before is not None:
            grown = decoding / self.measured[decoding] >= (1 + self.gain) * before / self.measured[before]
            late = self.seconds and self.measured[decoding] > self.seconds
            if late or not grown:
                self.rows, self.settled = before, True
                return
        self.settled = decoding >= room.rows
        self.rows = decoding if self.settled else decoding * 2
