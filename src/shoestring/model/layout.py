"""Which layers of a model differ from the rest, and which are wrapped: the words of a recipe, and their rules."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple

import pydantic
from annotated_types import Interval
from pydantic_core import PydanticCustomError, core_schema

from shoestring.config import Choice, Pick
from shoestring.errors import UsageError

TOKEN_MIXER = Pick("model", "token mixer", default="attention")
CHANNEL_MIXER = Pick("model", "channel mixer", default="swiglu")
NORM = Pick("model", "norm", default="rmsnorm")
RESIDUAL = Pick("model", "residual", default="pre_norm")
SPAN = Pick("model", "span")
EMBEDDING = Pick("model", "embedding")

OrAuto = Annotated[int, Interval(ge=0, le=1 << 24)]
"""A count, or 0 to have it worked out."""


def places(at: str, layers: int) -> tuple[int, ...]:
    """The layers that `at` names, in order: numbers and slices as Python has them, divided by commas ('0, 2::3, -1').

    Raises: ValueError where it is not such, or names a layer that the model has not, or none.
    """
    found: set[int] = set()
    for word in at.split(","):
        parts = [part.strip() for part in word.split(":")]
        try:
            numbers = [int(part) if part else None for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) == 1 and numbers[0] is not None:
            if not -layers <= numbers[0] < layers:
                raise ValueError(
                    f"at = '{at}': layer {numbers[0]} is none of the {layers}, which are 0 to {layers - 1}"
                )
            found.add(numbers[0] % layers)
        elif len(numbers) in (2, 3) and numbers[2:] != [0]:
            found.update(range(layers)[slice(*numbers)])
        else:
            raise ValueError(f"at = '{at}': a number or a slice of layers is needed, such as 3, 4:8 or 2::3")
    if not found:
        raise ValueError(f"at = '{at}' names none of the {layers} layers")
    return tuple(sorted(found))


@dataclass(frozen=True)
class Pattern:
    """Layers that differ from what the model says of all.

    at: which; see `places`. token_mixer, channel_mixer, norm, residual: of these layers; None: the model's. heads,
    key_value_heads, head_width, hidden: of these layers; 0: the model's, or what follows from what is given here.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    at: str
    token_mixer: Annotated[Choice, TOKEN_MIXER] | None = None
    channel_mixer: Annotated[Choice, CHANNEL_MIXER] | None = None
    norm: Annotated[Choice, NORM] | None = None
    residual: Annotated[Choice, RESIDUAL] | None = None
    heads: OrAuto = 0
    key_value_heads: OrAuto = 0
    head_width: OrAuto = 0
    hidden: OrAuto = 0

    def changes(self) -> dict[str, Any]:
        """What is given, by the key of the model's configuration."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "at"}
        return {name: value for name, value in given.items() if value}


class SpanAt(NamedTuple):
    """A run of layers that a span wraps. at: which; see `places`. span: the method, a `model/spans/`."""

    at: str
    span: Choice


class SpanList:
    """The annotation that makes a tuple of `SpanAt` of a list of tables, each with `at`, `name` and the span's options."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        def one(value: Any) -> SpanAt:
            if isinstance(value, SpanAt):
                return value
            if not isinstance(value, Mapping) or not isinstance(value.get("name"), str) or not value.get("at"):
                raise PydanticCustomError("choice", "each is a table with 'name' and 'at'")
            options = {key: item for key, item in value.items() if key not in ("name", "at")}
            try:
                return SpanAt(str(value["at"]), Choice.of(SPAN.engine, value["name"], kind=SPAN.kind, **options))
            except UsageError as error:
                raise PydanticCustomError("choice", "{reason}", {"reason": str(error)}) from None

        def read(value: Any) -> tuple[SpanAt, ...]:
            if not isinstance(value, list | tuple):
                raise PydanticCustomError("choice", "a list of tables is needed, each with 'name' and 'at'")
            return tuple(one(item) for item in value)

        def write(value: tuple[SpanAt, ...]) -> list[dict[str, Any]]:
            return [{"at": item.at, "name": item.span.name, **item.span.options} for item in value]

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )


def span_places(spans: tuple[SpanAt, ...], layers: int) -> list[tuple[int, ...]]:
    """The layers of each span. Raises: ValueError where they do not follow one another, or two spans share one."""
    found: list[tuple[int, ...]] = []
    for number, item in enumerate(spans):
        try:
            own = places(item.at, layers)
        except ValueError as error:
            raise ValueError(f"span {number + 1} ({item.span.name}): {error}") from None
        if own != tuple(range(own[0], own[-1] + 1)):
            raise ValueError(f"span {number + 1} ({item.span.name}): a span is a run of layers, not {own}")
        for other in found:
            if shared := set(own) & set(other):
                raise ValueError(
                    f"span {number + 1} ({item.span.name}): layer {min(shared)} is in another span already"
                )
        found.append(own)
    return found
