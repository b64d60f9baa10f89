"""Plain text: a file is a document, and a long file several."""

from collections.abc import Iterator
from pathlib import Path

from shoestring.data.opening import opened
from shoestring.data.passages import PASSAGE, passages
from shoestring.data.reading import TextReading
from shoestring.errors import UsageError
from shoestring.method import Count, method


@method(
    "data",
    kind="format",
    name="text",
    claim="a file is a document; a long one is cut into passages at blank lines where it can be",
    cost="the file is read twice: once to see that it is text",
)
def text(path: Path, reading: TextReading, *, passage: Count = PASSAGE) -> Iterator[str]:
    """The text of a file in passages of at most `passage` characters, which joined are the file exactly.

    Left out: a byte order mark, and what `reading` skips. Cutting keeps a file larger than memory readable, and lets
    part of one be held out.

    passage: the most characters of a document.
    Raises: NotText before anything is yielded, so that a folder can leave the whole file out.
    """
    if reading.options.control_field:
        raise UsageError(
            f"{path} is plain text, which has no field '{reading.options.control_field}' (data.control_field): "
            "give .jsonl or .parquet"
        )
    if reading.options.invalid == "refuse":
        with opened(path) as file:
            for _ in reading.text(file, path):
                pass
    with opened(path) as file:
        yield from passages(reading.text(file, path), passage)
