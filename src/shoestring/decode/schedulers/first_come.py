"""First come, first served, with long prompts in pieces."""

from collections.abc import Sequence

from shoestring.decode.row import Row
from shoestring.decode.scheduler import Room, RowReading, in_order, parted
from shoestring.method import method


@method(
    "decode",
    kind="scheduler",
    name="first_come",
    paper="Orca: A Distributed Serving System for Transformer-Based Generative Models, OSDI 2022; "
    "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, arXiv:2403.02310",
    claim="batching anew at each pass, and prompts read in pieces beside decoding rows, keep both throughput and delay",
    cost="none beside the passes",
)
class FirstCome:
    """Every row that decodes reads its token; what room is left goes to prompts, in the order in which they came.

    Rows join and leave between any two passes (continuous batching). A prompt that does not fit is read in pieces (chunked
    prefill), so that it does not hold up the rows that decode.
    """

    def plan(self, rows: Sequence[Row], room: Room) -> list[RowReading]:
        """As `Scheduler.plan`."""
        decoding, reading, waiting = parted(rows)
        places = max(0, room.rows - len(decoding) - len(reading))
        return in_order(decoding, reading, waiting[:places], room)
