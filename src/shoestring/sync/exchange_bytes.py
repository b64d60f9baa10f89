"""Bytes that an exchange sends, before it is made: by the shapes of its tensors and the codec alone."""

from collections.abc import Sequence

from shoestring.sync.codec import Codec
from shoestring.sync.exchange import Average
from shoestring.sync.message import BodyLayout, header_bytes
from shoestring.sync.transport.frame import HEADER_BYTES

VOTE = 1
"""Bytes of a vote."""

Shapes = Sequence[Sequence[int]]


def exchange_bytes(
    shapes: Shapes,
    codec: Codec,
    *,
    rank: int,
    workers: int,
    average: Average = "auto",
    average_codec: Codec | None = None,
) -> int:
    """Bytes that worker `rank` sends in one exchange of tensors of these shapes, frames and vote included.

    The same as `Round.sent` of an exchange after the first, which the settings check comes before. Where a codec's sizes vary it
    is the most there can be, but for the announcements of sizes. average, average_codec: as of `DiLoCo`.
    """
    if not shapes:
        return 0
    rows = [tuple(shape) or (1,) for shape in shapes]
    others = [other for other in range(workers) if other != rank]
    first = HEADER_BYTES + header_bytes(noted=True)
    sent = len(others) * (HEADER_BYTES + VOTE)
    if average == "gather" or (average == "auto" and workers <= 2 and average_codec is None):
        return sent + len(others) * (first + BodyLayout(codec, rows).nbytes)
    sent += sum(first + _of_part(codec, rows, other, workers) for other in others)
    answer = HEADER_BYTES + header_bytes(noted=False) + _of_part(average_codec or codec, rows, rank, workers)
    return sent + len(others) * answer


def _of_part(codec: Codec, shapes: Shapes, part: int, parts: int) -> int:
    """Bytes of the part-th of `parts` near-equal cuts of each tensor by rows, as a scattered exchange cuts them."""
    cut = [(rows * (part + 1) // parts - rows * part // parts, *rest) for rows, *rest in shapes]
    return BodyLayout(codec, cut).nbytes
