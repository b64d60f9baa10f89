"""Plain values made into a configuration, nested frozen dataclasses, and back; pydantic checks them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pydantic
import tomli_w

from shoestring.config.choice import Choice
from shoestring.config.messages import fields_of, keys_of, one_line
from shoestring.config.plain import Tree, require_plain
from shoestring.errors import UsageError, did_you_mean

C = TypeVar("C")

Flag = Callable[[str], str | None]
"""The command-line flag that gives a key ('train.batch'), for messages; None where there is none."""


def as_flag(key: str) -> str:
    """The flag of a key of the configuration: every key has one."""
    return f"--{key}"


_adapters: dict[type, pydantic.TypeAdapter[Any]] = {}


def _adapter(kind: type[C]) -> pydantic.TypeAdapter[C]:
    if kind not in _adapters:
        _adapters[kind] = pydantic.TypeAdapter(kind)  # made once: it takes longer than checking with it
    return _adapters[kind]


def _refuse_unknown(kind: Any, tree: Mapping[str, Any], prefix: str = "") -> None:
    """Raises: UsageError for a key that no dataclass has; pydantic passes over those of plain dataclasses."""
    known = fields_of(kind)
    for key, value in tree.items():
        if key not in known:
            former: Mapping[str, str] = getattr(kind, "FORMER", {})
            if key in former:
                raise UsageError(f"'{prefix}{key}' is a key no more: {former[key]}")
            raise UsageError(f"unknown key '{prefix}{key}': {did_you_mean(key, known)}")
        if dataclasses.is_dataclass(known[key]) and isinstance(value, Mapping) and known[key] is not Choice:
            _refuse_unknown(known[key], value, f"{prefix}{key}.")


def build(kind: type[C], tree: Mapping[str, Any], flag: Flag | None = None) -> C:
    """The configuration a tree of plain values describes.

    flag: what names the flags of keys, where the values may come from a command line.
    Raises: UsageError, in one line.
    """
    require_plain(tree)
    _refuse_unknown(kind, tree)
    try:
        return _adapter(kind).validate_python(dict(tree))
    except pydantic.ValidationError as error:
        line = one_line(error, kind)
        flags = [] if flag is None else [named for key in keys_of(error, kind, line) if (named := flag(key))]
        raise UsageError(f"{line} ({', '.join(flags)})" if flags else line) from None


def tree(configuration: Any) -> Tree:
    """The plain values of a configuration; absent (None) values are left out, as TOML has no word for them."""
    plain = _adapter(type(configuration)).dump_python(configuration, mode="json")
    return _without_none(plain)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def to_toml(configuration: Any) -> str:
    """The TOML text that `build` makes the same configuration from."""
    return tomli_w.dumps(tree(configuration))
