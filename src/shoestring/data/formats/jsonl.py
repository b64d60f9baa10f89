"""JSON lines: one object a line, the document in one of its fields."""

import json
from collections.abc import Iterator
from pathlib import Path

from shoestring.data.control_codes import controlled
from shoestring.data.opening import opened
from shoestring.data.reading import TextReading
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import method


@method(
    "data",
    kind="format",
    name="jsonl",
    claim="a line is a document",
    cost="one line in memory",
)
def jsonl(path: Path, reading: TextReading) -> Iterator[str]:
    """The text field of every line; blank lines and null texts are passed over.

    Raises: UsageError naming the file and line of a broken line, or of one whose field is missing or not text.
    """
    with opened(path) as file:
        for number, line in enumerate(reading.lines(file, path), 1):
            if line.strip():
                document = _document(line, reading, path, f"line {number}")
                if document is not None:
                    yield document


def _document(line: str, reading: TextReading, path: Path, where: str) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reading.broken(path, where, f"not JSON: {error}")
        return None
    field = reading.options.text_field
    if not isinstance(row, dict):
        raise UsageError(f"{path}, {where}: not a JSON object")
    if field not in row:
        raise UsageError(f"{path}, {where}: no field '{field}' (data.text_field): {did_you_mean(field, row)}")
    value = row[field]
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{path}, {where}: field '{field}' is not text")
    document, control = reading.value(value, path, where), reading.options.control_field
    if control and control not in row:
        raise UsageError(f"{path}, {where}: no field '{control}' (data.control_field): {did_you_mean(control, row)}")
    return document and controlled(document, control, row.get(control), f"{path}, {where}")
