"""Plain text: a file is a document, and a long file several."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from shoestring.data.opening import BLOCK, opened
from shoestring.errors import UsageError
from shoestring.method import Count, method


class NotText(UsageError):
    """The file holds NUL bytes or is not UTF-8."""


@method(
    "data",
    kind="format",
    name="text",
    claim="a file is a document; a long one is cut into passages at blank lines where it can be",
    cost="the file is read twice: once to see that it is text",
)
def text(path: Path, text_field: str, *, passage: Count = 65536) -> Iterator[str]:
    """The text of a file in passages of at most `passage` characters, which joined are the file exactly.

    Cutting keeps a file larger than memory readable, and lets part of one be held out. `text_field` is not used.
    Raises: NotText before anything is yielded, so that a folder can leave the whole file out.
    """
    for _ in _blocks(path):
        pass
    yield from passages(_blocks(path), passage)


def _blocks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with opened(path) as file:
            while block := file.read(BLOCK):
                if b"\0" in block:
                    raise NotText(f"{path} is not text: it holds NUL bytes")
                yield decoder.decode(block)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise NotText(f"{path} is not UTF-8 text: {error.reason}") from None


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
