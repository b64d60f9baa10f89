"""Reading JSON that a run writes as it goes: a torn last line is forgiven, damage is named by file and line."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from shoestring.errors import ShoestringError

Row = dict[str, Any]


def damaged(path: Path, line: int, what: str) -> ShoestringError:
    """The error that says where a file is damaged."""
    return ShoestringError(f"{path}, line {line}, is damaged: {what}")


def read_file(path: Path) -> bytes | None:
    """What a file holds; None where there is none. Raises: ShoestringError when it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShoestringError(f"{path} cannot be read: {error.strerror}") from None


def check_numbers(path: Path, line: int, row: Row, numbers: Set[str]) -> None:
    """Raises: ShoestringError where a key of `numbers` holds anything but a number or null."""
    for key in sorted(numbers & row.keys()):
        if not (row[key] is None or isinstance(row[key], int | float)):
            raise damaged(path, line, f"'{key}' is not a number")


def read_json(path: Path, kind: type, what: str) -> Any:
    """The JSON value of a file, which must be of `kind`; None where there is no such file. Raises: ShoestringError."""
    text = read_file(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise damaged(path, error.lineno, error.msg) from None
    except UnicodeDecodeError:
        raise damaged(path, 1, "not UTF-8") from None
    if not isinstance(value, kind):
        raise damaged(path, 1, f"{what} is expected")
    return value


def read_lines(path: Path, numbers: Set[str]) -> list[tuple[int, Row]]:
    """(line number, object) of each line of a .jsonl file; none where there is no file.

    A last line without its newline was torn by a crash, and counts only if whole. numbers: keys that must hold numbers.
    Raises: ShoestringError, naming file and line, for damage anywhere else.
    """
    lines = (read_file(path) or b"").split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise damaged(path, number, "not JSON") from None
        if not isinstance(row, dict):
            raise damaged(path, number, "not an object")
        check_numbers(path, number, row, numbers)
        rows.append((number, row))
    return rows
