"""Reading JSON from files that may be torn, damaged or hostile: what is wrong is said in one line, by file and line."""

import json
import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from shoestring.errors import ShoestringError

Row = dict[str, Any]

DEEPEST = 100
"""Lists and objects within one another, at most. No file of this program has ten; what follows recurses over them."""

_LONG_NUMBER = re.compile(rb"\d{300}")
"""No float holds a whole number of so many digits."""


class NotJson(ValueError):
    """A text that is not JSON that can be worked with. line: where. The message is one short line."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


def parse_json(text: bytes) -> Any:
    """The value of a JSON text. Raises: NotJson, whatever the text holds."""
    if _LONG_NUMBER.search(text):
        raise NotJson("a number of 300 digits or more")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise NotJson(error.msg, error.lineno) from None
    except UnicodeDecodeError:
        raise NotJson("not UTF-8") from None
    except RecursionError:
        raise NotJson(_TOO_DEEP) from None
    if _deeper_than(value, DEEPEST):
        raise NotJson(_TOO_DEEP)
    return value


_TOO_DEEP = f"lists and objects nested more than {DEEPEST} deep"


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


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


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_numbers(path: Path, line: int, row: Row, numbers: Set[str]) -> None:
    """Raises: ShoestringError where a key of `numbers` holds anything but a number or null."""
    for key in sorted(numbers & row.keys()):
        if not (row[key] is None or is_number(row[key])):
            raise damaged(path, line, f"'{key}' is not a number")


def read_json(path: Path, kind: type, what: str) -> Any:
    """The JSON value of a file, which must be of `kind`; None where there is no such file. Raises: ShoestringError.

    what: the kind in words, as in 'an object'.
    """
    text = read_file(path)
    if text is None:
        return None
    try:
        value = parse_json(text)
    except NotJson as error:
        raise damaged(path, error.line, str(error)) from None
    if not isinstance(value, kind):
        raise damaged(path, 1, f"{what} is expected")
    return value


def read_lines(path: Path, numbers: Set[str] = frozenset(), *, unfinished: bool = True) -> list[tuple[int, Row]]:
    """(line number, object) of each line of a .jsonl file; none where there is no file.

    numbers: keys that must hold numbers. unfinished: a last line without its newline counts where it is whole; False: never,
    since whoever goes on with the file cuts it off.
    Raises: ShoestringError, naming file and line, for damage anywhere but in a last line that a crash has torn.
    """
    lines = (read_file(path) or b"").split(b"\n")
    if not unfinished:
        lines[-1] = b""
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except NotJson as error:
            if number == len(lines):
                break
            raise damaged(path, number, f"not JSON ({error})") from None
        if not isinstance(row, dict):
            raise damaged(path, number, "not an object")
        check_numbers(path, number, row, numbers)
        rows.append((number, row))
    return rows
