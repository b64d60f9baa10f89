"""Ended rows are replaced at once; the batch is made anew only every so many passes."""

from collections.abc import Sequence

from shoestring.decode.row import Row
from shoestring.decode.scheduler import Room, RowReading, in_order, parted
from shoestring.method import Count, method


@method(
    "decode",
    kind="scheduler",
    name="e_batch",
    paper="E-BATCH: Energy-Efficient and High-Throughput RNN Batching, arXiv:2009.10656",
    claim="1.8x the throughput on the E-PUR accelerator and 2.1x on a TPU over the state of the art, for recurrent models",
    cost="newcomers wait for the end of a quantum, unless a row ends",
)
class EBatch:
    """A quantum is a number of passes with as many rows; a row that ends is replaced at once.

    A row that ends is replaced in the next pass; rows that would be more than before join when the quantum is over.

    The length of a quantum follows what was measured: while the tokens a second grow, it is doubled or halved further in the
    same direction, else it turns (the paper's runtime trades latency and energy by it). Its hardware is left out.

    passes: of the first quantum.
    longest: passes of a quantum, at most.
    """

    def __init__(self, *, passes: Count = 8, longest: Count = 64) -> None:
        if passes > longest:
            raise ValueError(f"e_batch: passes = {passes} is more than longest = {longest}")
        self.passes, self.longest = passes, longest
        self._size, self._left = 0, 0
        self._written, self._seconds = 0, 0.0
        self._rate: float | None = None
        self._growing = True

    def plan(self, rows: Sequence[Row], room: Room) -> list[RowReading]:
        """As `Scheduler.plan`."""
        if room.last is not None:
            self._written, self._seconds = self._written + room.last.written, self._seconds + room.last.seconds
        decoding, reading, waiting = parted(rows)
        running = len(decoding) + len(reading)
        if self._left <= 0 or not running:
            self._turn()
            self._size = min(room.rows, running + len(waiting))
        self._left -= 1
        return in_order(decoding, reading, waiting[: max(0, self._size - running)], room)

    def _turn(self) -> None:
        """A quantum begins, of as many passes as the last one's tokens a second suggest."""
        rate = self._written / self._seconds if self._seconds else None
        if rate is not None and self._rate is not None:
            if rate < self._rate:
                self._growing = not self._growing
            self.passes = min(self.longest, self.passes * 2) if self._growing else max(1, self.passes // 2)
        if rate is not None:
            self._rate = rate
        self._left, self._written, self._seconds = self.passes, 0, 0.0
