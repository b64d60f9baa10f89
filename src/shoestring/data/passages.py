"""Long text cut into passages, by one rule for every format."""

from collections.abc import Iterable, Iterator

PASSAGE = 65536
"""The most characters of a document: a longer one is cut into several."""


def passages(blocks: Iterable[str], limit: int) -> Iterator[str]:
    """Text cut into pieces of at most `limit` characters, wherever the blocks it comes in happen to end.

    A cut falls after the last blank line, line or word of the piece's second half, else at the limit itself.
    """
    held = ""
    for block in blocks:
        held += block
        start = 0
        while len(held) - start > limit:
            cut = _cut(held, start + limit // 2, start + limit)
            yield held[start:cut]
            start = cut
        held = held[start:]
    if held:
        yield held


def _cut(held: str, first: int, last: int) -> int:
    for mark in ("\n\n", "\n", " "):
        at = held.rfind(mark, first, last)
        if at >= 0:
            return at + len(mark)
    return last
