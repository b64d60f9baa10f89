"""The number format of a run's weights, as its configuration says it: `--lowbit ternary --lowbit.activations int8`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pydantic_core import PydanticCustomError, core_schema

from shoestring.config import Choice, Tree, build
from shoestring.errors import UsageError
from shoestring.lowbit.activations import Activations


@dataclass(frozen=True)
class Beside:
    """What goes with any format. activations: what the inputs of the lowered layers are rounded to. keep: patterns of the
    names of layers that stay in full precision, beside embedding, output head and norms."""

    activations: Activations = "none"
    keep: tuple[str, ...] = ()


class LowBit(NamedTuple):
    """The section `lowbit`: a format with its options, and what goes with any format, side by side."""

    format: Choice
    beside: Beside

    @property
    def on(self) -> bool:
        return self.format.name != "none"


class LowBitSection:
    """The annotation that makes a `LowBit` field read from a table, or from a format's name."""

    def choice(self) -> LowBit:
        return LowBit(Choice.of("lowbit", "none", kind="format"), Beside())

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _read, serialization=core_schema.plain_serializer_function_ser_schema(_write)
        )


def _read(value: Any) -> LowBit:
    if isinstance(value, LowBit):
        return value
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise PydanticCustomError("choice", "a format's name, or a table with one, is needed")
    table = {"name": "none", **table}
    own = {key: table.pop(key) for key in Beside.__dataclass_fields__ if key in table}
    try:
        found = LowBit(Choice.of("lowbit", str(table.pop("name")), kind="format", **table), build(Beside, own))
    except UsageError as error:
        raise PydanticCustomError("choice", "{reason}", {"reason": str(error)}) from None
    if not found.on and found.beside != Beside():
        raise PydanticCustomError("choice", "activations and keep go with a format: give --lowbit ternary, say")
    return found


def _write(section: LowBit) -> Tree:
    beside = {**asdict(section.beside), "keep": list(section.beside.keep)} if section.on else {}
    return {"name": section.format.name, **section.format.options, **beside}
