"""JSON lines: one object a line, the document in one of its fields."""

import json
from collections.abc import Iterator
from pathlib import Path

from shoestring.data.opening import opened
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import method


@method(
    "data",
    kind="format",
    name="jsonl",
    claim="a line is a document",
    cost="one line in memory",
)
def jsonl(path: Path, text_field: str) -> Iterator[str]:
    """The text field of every line; blank lines and null texts are passed over.

    Raises: UsageError naming the file and line of a broken line, or of one whose field is missing or not text.
    """
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                document = _document(line, text_field, f"{path}, line {number}")
                if document is not None:
                    yield document


def _document(line: bytes, text_field: str, where: str) -> str | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: not a JSON object")
    if text_field not in row:
        raise UsageError(f"{where}: no field '{text_field}' (data.text_field): {did_you_mean(text_field, row)}")
    value = row[text_field]
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}: field '{text_field}' is not text")
    try:
        (value or "").encode()  # JSON can spell half a surrogate pair, which no UTF-8 text holds
    except UnicodeEncodeError:
        raise UsageError(f"{where}: field '{text_field}' holds half of a surrogate pair") from None
    return value
