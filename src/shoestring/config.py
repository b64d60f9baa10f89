"""Typed configuration: nested frozen dataclasses, TOML in, TOML out, any key overridden, one clear line when it is wrong.

pydantic checks the values, tomllib and tomli_w read and write the files. A section that chooses a method (`Choice`) is
the method's `name` beside that method's own options, so a new method brings its own keys and nothing here changes.
"""

import dataclasses
import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pydantic
import tomli_w
from pydantic_core import PydanticCustomError, core_schema

from shoestring.errors import UsageError, did_you_mean
from shoestring.method import Card, find, find_in

C = TypeVar("C")
Tree = dict[str, Any]

DEEPEST = 32
"""Tables and lists within each other that a configuration may have; the deepest that is used has five."""

Flag = Callable[[str], str | None]
"""The command-line flag that gives a key ('train.batch'), for messages; None where there is none."""


class OptionError(UsageError):
    """An option of a method is wrong. key: the option, as in a recipe's section for the method."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def as_flag(key: str) -> str:
    """The flag of a key of the configuration: every key has one."""
    return f"--{key}"


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
            raise OptionError(_one_line(error, card.options(), name), _key(error)) from None
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
                key = error.key if isinstance(error, OptionError) else ""
                raise PydanticCustomError("choice", "{reason}", {"reason": str(error), "key": key}) from None

        def write(choice: Choice) -> Tree:
            return {"name": choice.name, **choice.options}

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )


class PickList:
    """The annotation that makes a tuple of `Choice`s, in order, read from a list of tables:
    `Annotated[tuple[Choice, ...], PickList("edit", ("lowbit", "surgery"))]`.

    Read too are names ("drop_layers, lora"), and from flags a table of options by name: `--edits lora --edits.lora.rank 4`.
    engines: where a name is looked up.
    """

    def __init__(self, kind: str, engines: Sequence[str]) -> None:
        self.kind, self.engines = kind, tuple(engines)

    def _choice(self, value: Any) -> Choice:
        if isinstance(value, Choice):
            return value
        table = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise PydanticCustomError("choice", "each is a name, or a table with one")
        options = {key: item for key, item in table.items() if key != "name"}
        try:
            card = find_in(self.engines, table["name"].strip(), self.kind)
            return Choice.of(card.engine, card.name, kind=self.kind, **options)
        except UsageError as error:
            raise PydanticCustomError("choice", "{reason}", {"reason": str(error)}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        def read(value: Any) -> tuple[Choice, ...]:
            if isinstance(value, str | Mapping):
                value = listed([], value)
            if not isinstance(value, list | tuple):
                raise PydanticCustomError("choice", "a list of tables is needed, each with a name")
            return tuple(self._choice(item) for item in value)

        def write(choices: tuple[Choice, ...]) -> list[Tree]:
            return [{"name": choice.name, **choice.options} for choice in choices]

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )


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


def _fields(kind: Any) -> dict[str, Any]:
    """The keys a dataclass or pydantic model takes, with their types; empty for anything else."""
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind)
    return {}


def _key(error: pydantic.ValidationError) -> str:
    """The key of the first thing wrong, down to the option of a method."""
    first = error.errors()[0]
    below = first.get("ctx", {}).get("key", "") if first["type"] == "choice" else ""
    return ".".join([*(str(part) for part in first["loc"]), *([below] if below else [])])


def _shown(value: Any) -> str:
    """A value in a message, in printable characters and not at length."""
    try:
        text = ascii(value) if isinstance(value, str) and not _is_text(value) else repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}..."


def _one_line(error: pydantic.ValidationError, kind: Any, prefix: str = "") -> str:
    """The first thing wrong, as `section.key = value: what is wrong`."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(([prefix] if prefix else []) + path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        for part in path[:-1]:
            item = next(iter(typing.get_args(kind)), None)
            kind = item if part.isdigit() and item is not None else _fields(kind).get(part)
        return f"unknown key '{where}': {did_you_mean(path[-1], _fields(kind))}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"'{where}' is needed"
    if first["type"] == "choice":
        return f"{where}: {first['msg']}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # a section's parts do not go together
        return f"{where}: {message}" if where else message
    return f"{where} = {_shown(first['input'])}: {message[:1].lower()}{message[1:]}"


_adapters: dict[type, pydantic.TypeAdapter[Any]] = {}


def _adapter(kind: type[C]) -> pydantic.TypeAdapter[C]:
    if kind not in _adapters:
        _adapters[kind] = pydantic.TypeAdapter(kind)  # made once: it takes longer than checking with it
    return _adapters[kind]


def _refuse_unknown(kind: Any, tree: Mapping[str, Any], prefix: str = "") -> None:
    """Raises: UsageError for a key that no dataclass has; pydantic passes over those of plain dataclasses."""
    known = _fields(kind)
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
        line = _one_line(error, kind)
        flags = [] if flag is None else [named for key in _keys_of(error, kind, line) if (named := flag(key))]
        raise UsageError(f"{line} ({', '.join(flags)})" if flags else line) from None


def _keys_of(error: pydantic.ValidationError, kind: Any, line: str) -> list[str]:
    """The keys that an error is about: one, or those that do not go together, where a message writes `key = value`."""
    first = error.errors()[0]
    if first["type"] != "value_error":
        key = _key(error)
        return [key] if key else []
    section = [str(part) for part in first["loc"]]
    for part in section:
        kind = _fields(kind).get(part)
    if not _fields(kind):
        return [".".join(section)]
    named = [word for word in re.findall(r"([a-z_][a-z_.]*) = ", line) if word.partition(".")[0] in _fields(kind)]
    return [".".join([*section, word]) for word in dict.fromkeys(named)]


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
            raise UsageError(f"{where} = {_shown(value)}: a whole number of more than 64 bits")
        elif isinstance(value, str) and not _is_text(value):
            raise UsageError(f"{where} = {_shown(value)}: this is not UTF-8 text")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as Python has it for bytes that are not UTF-8
        return False
    return True


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
