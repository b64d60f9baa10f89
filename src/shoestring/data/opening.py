"""Files opened for reading, `.gz` and `.zst` decompressed on the way; a damaged one is named in one line."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shoestring.errors import UsageError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""File suffixes and what pyarrow calls their compression."""

BLOCK = 1 << 18
"""Bytes read at a time."""


def suffix(path: Path) -> str:
    """The suffix that tells a file's format, lower case and without its dot: 'jsonl' for `a.jsonl.zst`."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return inner.suffix[1:].lower()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file. Raises: UsageError when it cannot be read, or is cut short or damaged."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        if compression is None:
            with open(path, "rb", buffering=BLOCK) as file:
                yield file
        else:
            import pyarrow  # here, since it takes a while to import; unlike zstandard it notices a file cut short

            with pyarrow.input_stream(str(path), compression=compression) as stream:
                yield io.BufferedReader(stream, BLOCK)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
