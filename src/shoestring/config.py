"""Typed configuration: nested frozen dataclasses, TOML in, TOML out, any key overridden, one clear line when it is wrong.

pydantic checks the values, tomllib and tomli_w read and write the files. A section that chooses a method (`Choice`) is
the method's `name` beside that method's own options, so a new method brings its own keys and nothing here changes.
"""

import dataclasses
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pydantic
import tomli_w
from pydantic_core import PydanticCustomError, core_schema

from shoestring.errors import UsageError, did_you_mean
from shoestring.method import Card, find

C = TypeVar("C")
Tree = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A method chosen by name with all its options; `build` makes it.

    engine, kind: where the name is looked up. options: complete, defaults included.
    """

    engine: str
    kind: str
    name: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, engine: str, name: str, *, kind: str = "", **options: Any) -> "Choice":
        """The method `name` with these options, checked, the rest at their defaults. Raises: UsageError."""
        card = find(engine, name, kind)
        try:
            checked = card.options()(**options)
        except pydantic.ValidationError as error:
            raise UsageError(_one_line(error, card.options(), name)) from None
        return cls(engine, kind, name, MappingProxyType(checked.model_dump()))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Choice":
        return self  # nothing in it can change, so a copied model may share it

    @property
    def card(self) -> Card:
        return find(self.engine, self.name, self.kind)

    def build(self, *supplied: Any, **more: Any) -> Any:
        """Call the method with what the engine supplies and the options of this choice."""
        return self.card.target(*supplied, **{**self.options, **more})

    def with_options(self, **options: Any) -> "Choice":
        return Choice.of(self.engine, self.name, kind=self.kind, **{**self.options, **options})


class Pick:
    """The annotation that makes a `Choice` field read from a table: `Annotated[Choice, Pick("optim")]`.

    default: the method meant by a table without a name. shorthand: makes the table of a single word, where that is more
    than a name ('2bit').
    """

    def __init__(
        self,
        engine: str,
        kind: str = "",
        *,
        default: str | None = None,
        shorthand: Callable[[str], Tree] = lambda word: {"name": word},
    ) -> None:
        self.engine, self.kind, self.default, self.shorthand = engine, kind, default, shorthand

    def choice(self) -> Choice:
        """The default method with its default options."""
        if self.default is None:
            raise ValueError(f"no default {self.kind or self.engine} method")
        return Choice.of(self.engine, self.default, kind=self.kind)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        def read(value: Any) -> Choice:
            if isinstance(value, Choice):
                return value
            if isinstance(value, str):
                value = {"name": value}
            if isinstance(value, Mapping) and isinstance(value.get("name"), str):
                value = {**self.shorthand(value["name"]), **{key: item for key, item in value.items() if key != "name"}}
            if isinstance(value, Mapping) and self.default is not None:
                value = {"name": self.default, **value}
            if not isinstance(value, Mapping) or "name" not in value:
                raise PydanticCustomError("choice", "a method's name, or a table with one, is needed")
            options = {key: item for key, item in value.items() if key != "name"}
            try:
                return Choice.of(self.engine, str(value["name"]), kind=self.kind, **options)
            except UsageError as error:
                raise PydanticCustomError("choice", "{reason}", {"reason": str(error)}) from None

        def write(choice: Choice) -> Tree:
            return {"name": choice.name, **choice.options}

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )


def _fields(kind: Any) -> dict[str, Any]:
    """The keys a dataclass or pydantic model takes, with their types; empty for anything else."""
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind)
    return {}


def _one_line(error: pydantic.ValidationError, kind: Any, prefix: str = "") -> str:
    """The first thing wrong, as `section.key = value: what is wrong`."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(([prefix] if prefix else []) + path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        for part in path[:-1]:
            kind = _fields(kind).get(part)
        return f"unknown key '{where}': {did_you_mean(path[-1], _fields(kind))}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"'{where}' is needed"
    if first["type"] == "choice":
        return f"{where}: {first['msg']}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # a section's parts do not go together
        return f"{where}: {message}" if where else message
    return f"{where} = {first['input']!r}: {message[:1].lower()}{message[1:]}"


def _adapter(kind: type[C]) -> pydantic.TypeAdapter[C]:
    return pydantic.TypeAdapter(kind)


def _refuse_unknown(kind: Any, tree: Mapping[str, Any], prefix: str = "") -> None:
    """Raises: UsageError for a key that no dataclass has; pydantic passes over those of plain dataclasses."""
    known = _fields(kind)
    for key, value in tree.items():
        if key not in known:
            raise UsageError(f"unknown key '{prefix}{key}': {did_you_mean(key, known)}")
        if dataclasses.is_dataclass(known[key]) and isinstance(value, Mapping) and known[key] is not Choice:
            _refuse_unknown(known[key], value, f"{prefix}{key}.")


def build(kind: type[C], tree: Mapping[str, Any]) -> C:
    """The configuration a tree of plain values describes. Raises: UsageError, in one line."""
    _refuse_unknown(kind, tree)
    try:
        return _adapter(kind).validate_python(dict(tree))
    except pydantic.ValidationError as error:
        raise UsageError(_one_line(error, kind)) from None


def tree(configuration: Any) -> Tree:
    """The plain values of a configuration; absent (None) values are left out, as TOML has no word for them."""
    plain = _adapter(type(configuration)).dump_python(configuration, mode="json")
    return _without_none(plain)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def to_toml(configuration: Any) -> str:
    """The TOML text that `build` makes the same configuration from."""
    return tomli_w.dumps(tree(configuration))


def read_toml(path: Path) -> Tree:
    """The plain values of a TOML file. Raises: UsageError when it is missing or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
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
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            if "name" in value and value["name"] != below.get("name"):
                merged[key] = dict(value)
            else:
                merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged
