"""What is wrong with a configuration, in one line: pydantic's first error in the words of its keys."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

import pydantic

from shoestring.config.plain import shown
from shoestring.errors import did_you_mean


def fields_of(kind: Any) -> dict[str, Any]:
    """The keys a dataclass or pydantic model takes, with their types; empty for anything else."""
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind)
    return {}


def key_of(error: pydantic.ValidationError) -> str:
    """The key of the first thing wrong, down to the option of a method."""
    first = error.errors()[0]
    below = first.get("ctx", {}).get("key", "") if first["type"] == "choice" else ""
    return ".".join([*(str(part) for part in first["loc"]), *([below] if below else [])])


def one_line(error: pydantic.ValidationError, kind: Any, prefix: str = "") -> str:
    """The first thing wrong, as `section.key = value: what is wrong`."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(([prefix] if prefix else []) + path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        for part in path[:-1]:
            item = next(iter(typing.get_args(kind)), None)
            kind = item if part.isdigit() and item is not None else fields_of(kind).get(part)
        return f"unknown key '{where}': {did_you_mean(path[-1], fields_of(kind))}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"'{where}' is needed"
    if first["type"] == "choice":
        return f"{where}: {first['msg']}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # a section's parts do not go together
        return f"{where}: {message}" if where else message
    return f"{where} = {shown(first['input'])}: {message[:1].lower()}{message[1:]}"


def keys_of(error: pydantic.ValidationError, kind: Any, line: str) -> list[str]:
    """The keys that an error is about: one, or those that do not go together, where a message writes `key = value`."""
    first = error.errors()[0]
    if first["type"] != "value_error":
        key = key_of(error)
        return [key] if key else []
    section = [str(part) for part in first["loc"]]
    for part in section:
        kind = fields_of(kind).get(part)
    if not fields_of(kind):
        return [".".join(section)]
    named = [word for word in re.findall(r"([a-z_][a-z_.]*) = ", line) if word.partition(".")[0] in fields_of(kind)]
    return [".".join([*section, word]) for word in dict.fromkeys(named)]
