"""The request whose time is over first goes first."""

from collections.abc import Sequence

from shoestring.decode.row import Row
from shoestring.decode.scheduler import Room, RowReading, in_order, parted
from shoestring.method import method


@method(
    "decode",
    kind="scheduler",
    name="earliest_deadline",
    paper="Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment, C. L. Liu and J. W. Layland 1973",
    claim="on one processor, where any order meets all deadlines of tasks that can be interrupted, this one does",
    cost="a sort of the rows a pass",
)
class EarliestDeadline:
    """The most urgent request goes first.

    Among requests of one priority, prompts are read and places given in the order of deadlines (`Request.seconds`); those
    without one come last, as they came. Rows that decode all go on, the most urgent first where a pass has no room for all.

    A row keeps its place to its end, unlike in the paper: giving it up would cost what was read.
    """

    def plan(self, rows: Sequence[Row], room: Room) -> list[RowReading]:
        """As `Scheduler.plan`."""
        urgent = sorted(rows, key=lambda row: (-row.request.priority, row.deadline))
        decoding, reading, waiting = parted(urgent)
        places = max(0, room.rows - len(decoding) - len(reading))
        return in_order(decoding, reading, waiting[:places], room)
