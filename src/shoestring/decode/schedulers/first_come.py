"""First come, first served, with long prompts in pieces."""

from collections.abc import Sequence

from shoestring.decode.row import Row
from shoestring.decode.scheduler import Reading, Room
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

    def plan(self, rows: Sequence[Row], room: Room) -> list[Reading]:
        """As `Scheduler.plan`."""
        chosen, left, places, free = list[Reading](), room.tokens, room.rows, room.free
        running = [row for row in rows if row.running]
        places -= len(running)
        for row in running:
            if row.decoding and left > 0:
                chosen.append(Reading(row, 1))
                left -= 1 + room.drafts
        for row in running:
            if not row.decoding and left > 0:
                chosen.append(Reading(row, min(row.unread, left)))
                left -= chosen[-1].tokens
        for row in rows:
            if row.running:
                continue
            # room for all of it, as a row that is begun and cannot go on would have to be read again
            if left <= 0 or places <= 0 or len(row.tokens) > free:
                break  # those that came later wait too
            chosen.append(Reading(row, min(row.unread, left)))
            left -= chosen[-1].tokens
            places -= 1
            free -= len(row.tokens)
        return chosen
