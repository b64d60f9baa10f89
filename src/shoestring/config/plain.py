"""Configurations as plain values, from TOML files and command lines: trees of tables, lists, words and numbers."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoestring.errors import UsageError

Tree = dict[str, Any]

DEEPEST = 32
"""Tables and lists within each other that a configuration may have; the deepest that is used has five."""


def listed(lower: Sequence[Any], upper: Any) -> list[Any]:
    """A list of named tables, with what flags say laid over it: `--edits a,b` names them anew, `--edits.a.option value` sets an
    option of the one of that name, which is added where there is none."""
    by_name = {"name": upper} if isinstance(upper, str) else dict(upper)
    names = by_name.pop("name", None)
    if isinstance(names, str):
        made: list[Any] = [{"name": name.strip()} for name in names.split(",") if name.strip()]
    else:
        made = [{"name": item} if isinstance(item, str) else dict(item) for item in lower]
    for name, options in by_name.items():
        if not isinstance(options, Mapping):
            raise UsageError(
                f"'{name}' is no option of a list: give the name first, then its options, as --KEY.NAME.OPTION"
            )
        place = next((item for item in made if item.get("name") == name), None)
        if place is None:
            made.append({"name": name, **options})
        else:
            place.update(options)
    return made


def tables(value: Any) -> list[Any]:
    """A list of named tables, however it is given: as a list, as names, or as flags have it."""
    return listed(value, {}) if isinstance(value, list | tuple) else listed([], value)


def require_plain(tree: Mapping[str, Any]) -> None:
    """Check that values can be read and written: of a bounded depth, whole numbers of 64 bits, text that UTF-8 can hold.

    Raises: UsageError.
    """
    queue: list[tuple[str, Any, int]] = [("", tree, 0)]
    while queue:
        where, value, depth = queue.pop()
        if depth > DEEPEST:
            raise UsageError(f"'{where[:40]}...' is nested more than {DEEPEST} levels deep")
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not _is_text(str(key)):
                    raise UsageError(f"the key {key!a} is not UTF-8 text")
                queue.append((f"{where}.{key}" if where else str(key), item, depth + 1))
        elif isinstance(value, list | tuple):
            queue += ((where, item, depth + 1) for item in value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise UsageError(f"{where} = {shown(value)}: a whole number of more than 64 bits")
        elif isinstance(value, str) and not _is_text(value):
            raise UsageError(f"{where} = {shown(value)}: this is not UTF-8 text")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as Python has it for bytes that are not UTF-8
        return False
    return True


def read_toml(path: Path) -> Tree:
    """The plain values of a TOML file. Raises: UsageError when it is missing or is not TOML."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        require_plain(found)
        return found
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except RecursionError:
        raise UsageError(f"{path} is not TOML that can be read: it is nested too deeply") from None
    except ValueError as error:  # of TOML, of UTF-8, or of a number with thousands of digits
        raise UsageError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def overrides(words: Iterable[str]) -> Tree:
    """The tree that command-line words `--section.key value` (or `--section.key=value`) describe.

    A value is read as TOML where it is TOML (`3`, `true`, `[1, 2]`), else as text. Raises: UsageError.
    """
    found: Tree = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or word == "--":
            raise UsageError(f"'{word}' is not a flag: configuration is given as --section.key value")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise UsageError(f"--{key} needs a value")
            text = queue.pop(0)
        try:
            read = tomllib.loads(f"value = {text}")
            value = read["value"] if len(read) == 1 else text  # a text of several lines may hold other keys
        except (ValueError, RecursionError):
            value = text
        try:
            require_plain({key: value})
        except UsageError as error:
            raise UsageError(f"--{error}") from None
        if key.count(".") > DEEPEST:
            raise UsageError(f"--{key[:40]}... is nested more than {DEEPEST} levels deep")
        branch = found
        *sections, last = key.replace("-", "_").split(".")
        for section in sections:
            below = branch.setdefault(section, {})
            # `--optim muon --optim.lr 0.1`: the name first, then its options
            branch[section] = below = below if isinstance(below, dict) else {"name": below}
            branch = below
        if isinstance(branch.get(last), dict):
            branch[last]["name"] = value
        else:
            branch[last] = value
    return found


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> Tree:
    """`upper` laid over `lower`. A section whose method changes name drops the lower method's options."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, str) and isinstance(value, Mapping):  # a method by its name alone, and options of it
            below = {"name": below}
        if isinstance(below, Mapping) and isinstance(value, str) and "name" in below:
            value = {"name": value}
        if isinstance(below, list) and isinstance(value, str | Mapping):
            merged[key] = listed(below, value)
        elif isinstance(below, Mapping) and isinstance(value, Mapping):
            if "name" in value and value["name"] != below.get("name"):
                merged[key] = dict(value)
            else:
                merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def shown(value: Any) -> str:
    """A value in a message, in printable characters and not at length."""
    try:
        text = ascii(value) if isinstance(value, str) and not _is_text(value) else repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}..."
