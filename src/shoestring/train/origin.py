"""What a run began with, kept beside its config.toml: it tells whether that was edited, and where the data may lie now."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shoestring import atomic
from shoestring.config import Tree
from shoestring.data.places import PLACES, absolute_data
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import read_json
from shoestring.train.config import RunConfig
from shoestring.train.old_config import with_absolute_places

NAME = "origin.json"
FORMAT = "shoestring-run"
VERSION = 1

MOVABLE = {f"data.{key}" for key in PLACES} | {"start.run", "model.base", "old.corpus"}
"""Keys that say where something lies: it may be moved, and is known by its content."""


def absolute(config: RunConfig) -> RunConfig:
    """A configuration whose files are named by absolute paths."""
    return replace(config, data=absolute_data(config.data), old=with_absolute_places(config.old))


@dataclass(frozen=True)
class Origin:
    """config: the plain values of the configuration that the run began with.
    data, tokenizer: fingerprints of its dataset and of its tokenizer, or ''.
    """

    config: Tree
    data: str
    tokenizer: str

    def write(self, folder: Path) -> None:
        content = asdict(self)
        described = {"format": FORMAT, "version": VERSION, "sha256": _digest(content), **content}
        atomic.write_text(folder / NAME, json.dumps(described, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Origin | None":
        """None where there is none: the run was begun by an earlier version. Raises: ShoestringError where it is damaged."""
        path = folder / NAME
        found = read_json(path, dict, "an object")
        if found is None:
            return None
        content = {key: found.get(key) for key in ("config", "data", "tokenizer")}
        kinds = tuple(type(value) for value in content.values())
        if found.get("format") != FORMAT or kinds != (dict, str, str):
            raise ShoestringError(f"{path} is damaged: it does not say what the run began with")
        if found.get("version") != VERSION:
            raise ShoestringError(f"{path} has version {found.get('version')!r}, this program reads version {VERSION}")
        if found.get("sha256") != _digest(content):
            raise ShoestringError(f"{path} is damaged: its checksum is not the one recorded")
        return cls(**content)

    def require_unedited(self, path: Path, plain: Mapping[str, Any]) -> None:
        """plain: the values that config.toml, at `path`, has now. Raises: UsageError, which says what was edited."""
        was, now = dict(_leaves(self.config)), dict(_leaves(plain))
        edited = [
            key for key in {**was, **now} if key not in MOVABLE and was.get(key, _ABSENT) != now.get(key, _ABSENT)
        ]
        if not edited:
            return
        said = ", ".join(f"{key} was {_show(was, key)} and is {_show(now, key)}" for key in edited[:3])
        more = f" and {len(edited) - 3} more" if len(edited) > 3 else ""
        raise UsageError(
            f"{path} was edited since the run began: {said}{more}; put back what it was, and for other settings begin a new "
            f"run, from these weights with --model.base {path.parent}"
        )


_ABSENT = object()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _leaves(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree by their dotted keys."""
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return "absent"
    said = str(leaves[key])
    return said if len(said) <= 60 else f"{said[:57]}..."
