"""Texts in lists that are worked on at once."""

from collections.abc import Iterable, Iterator


def batched(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Texts in lists of about so many characters, in order."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= characters:
            yield held
            held, size = [], 0
    if held:
        yield held
