"""What is set apart between runs: nested settings side by side, and their TOML with the differing lines marked."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested values under dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def written(value: Any) -> str:
    """A value as one reads it in a table: text without quotes, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def differing(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str | None]]]:
    """(dotted key, its value in each tree, None where absent) for the keys that are not the same in all."""
    flats = [flat(tree) for tree in trees]
    rows = []
    for key in dict.fromkeys(key for one in flats for key in one):
        values = [written(one[key]) if key in one else None for one in flats]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def marked(tree: Mapping[str, Any], keys: frozenset[str] = frozenset()) -> list[list[tuple[str, bool]]]:
    """The tree as TOML, section by section: (line, whether it sets one of the dotted `keys` or a part of one)."""

    def named(path: str) -> bool:
        return any(path == key or path.startswith(f"{key}.") for key in keys)

    section, inside = "", False
    sections: list[list[tuple[str, bool]]] = [[]]
    for line in tomli_w.dumps(tree).splitlines():
        header = re.fullmatch(r"\[+([^\[\]]+)\]+", line)
        setting = re.match(r'("[^"]*"|[^\s"]+) = ', line)
        if header:
            path = header[1].replace('"', "")
            section, inside = f"{path}.", named(path)
            sections.append([])
        elif setting:  # an array's further lines belong to the key above them
            inside = named(section + setting[1].strip('"'))
        if line:
            sections[-1].append((line, inside))
    return [lines for lines in sections if lines]
