"""A section that chooses a method: the method's `name` beside that method's own options.

A new method brings its own keys, and nothing here changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pydantic
from pydantic_core import PydanticCustomError, core_schema

from shoestring.config.messages import key_of, one_line
from shoestring.config.plain import Tree, listed
from shoestring.errors import UsageError
from shoestring.method import Card, find, find_in


class OptionError(UsageError):
    """An option of a method is wrong. key: the option, as in a recipe's section for the method."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


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
        return cls.read(engine, name, kind, options)

    @classmethod
    def read(cls, engine: str, name: str, kind: str, options: Mapping[str, Any]) -> "Choice":
        """As `of`, of options that may have any names, as a file has them."""
        card = find(engine, name, kind)
        try:
            checked = card.options()(**options)
        except pydantic.ValidationError as error:
            raise OptionError(one_line(error, card.options(), name), key_of(error)) from None
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
        return Choice.read(self.engine, self.name, self.kind, {**self.options, **options})


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
                return Choice.read(self.engine, str(value["name"]), self.kind, options)
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
            return Choice.read(card.engine, card.name, self.kind, options)
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
