"""`shoestring methods`: the cards."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from annotated_types import GroupedMetadata
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from shoestring.cli.arguments import Arguments
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.config import Choice, Pick
from shoestring.errors import UsageError, did_you_mean
from shoestring.explain import options
from shoestring.method import ENGINES, Card, methods

BEYOND = 1e6
"""Upper bounds from here on only catch slips, and are not shown."""

SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def run(words: Sequence[str]) -> int:
    parser = Arguments(
        "methods",
        "List the methods, engine by engine: what each claims, what it costs, where it is from.\n"
        "With the name of a method: its card with all its options.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a method, or an engine: " + ", ".join(ENGINES))
    add_json_flag(parser, "the cards")
    found = parser.read(words)
    cards = _chosen(found.name)
    if found.json:
        print_json([_described(card) for card in cards])
        return 0
    console = Console()
    in_full = found.name is not None and found.name not in ENGINES
    for (_, slot), group in groupby(cards, key=lambda card: (card.engine, _slot(card))):
        console.print(slot, style="bold", highlight=False)
        for card in group:
            _say(console, f"[bold]{card.name}[/bold]  {escape(card.summary)}", 2)
            _say(console, f"claims: {escape(card.claim)}", 6)
            _say(console, f"costs: {escape(card.cost)}", 6)
            if card.paper:
                _say(console, f"source: {escape(card.paper)}", 6)
            if in_full:
                _say_options(console, card)
    return 0


def _chosen(name: str | None) -> list[Card]:
    """The cards of an engine, or of the methods of a name, or all. Raises: UsageError."""
    if name is None or name in ENGINES:
        return methods(name)
    cards = [card for card in methods() if card.name == name]
    if not cards:
        known = {*ENGINES, *(card.name for card in methods())}
        raise UsageError(f"no engine and no method is named '{name}': {_nearest(name, known)}")
    return cards


def _nearest(name: str, known: set[str]) -> str:
    near = did_you_mean(name, known)
    return near if near.startswith("did you mean") else "`shoestring methods` lists them all"


def _say_options(console: Console, card: Card) -> None:
    fields, said = card.options().model_fields, options(card)
    _say(console, "options:" if fields else "options: none", 6)
    for name, field in fields.items():
        default = "needed" if field.is_required() else f"default {_written(_default(field))}"
        kind = values(field)
        _say(console, f"[bold]{name}[/bold]  {escape(kind)}{', ' if kind else ''}{escape(default)}", 8)
        if said[name]:
            _say(console, escape(said[name]), 12)
    module = getattr(card.target, "__module__", "")
    _say(console, f"in {module}: its documentation has the formula and what differs from the paper", 6)


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _written(value: Any) -> str:
    """A default as a flag would give it."""
    if isinstance(value, Choice):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def values(field: FieldInfo) -> str:
    """The values an option may take, for people: 'number > 0 and <= 1', 'adam or none'."""
    pick = next((each for each in field.metadata if isinstance(each, Pick)), None)
    if pick is not None:
        return f"a {pick.kind or pick.engine} by name"
    return _values(field.annotation, tuple(field.metadata))


def _values(kind: Any, limits: tuple[Any, ...]) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _values(inside[0], (*limits, *inside[1:]))
    if origin is Literal:
        return " or ".join(str(each) for each in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if each is type(None) else _values(each, ()) for each in inside)
    if origin is tuple:
        return f"list of: {_values(inside[0], ())}"
    if kind is bool:
        return "true or false"
    if kind is Choice:
        pick = next((each for each in limits if isinstance(each, Pick)), None)
        return f"a {pick.kind or pick.engine} by name" if pick else "a method by name"
    if dataclasses.is_dataclass(kind):
        return f"table of {', '.join(field.name for field in dataclasses.fields(kind))}"
    word = {int: "whole number", float: "number", str: "text"}.get(kind, "")
    bounds = " and ".join(_bounds(limits))
    return f"{word} {bounds}".strip()


def _bounds(limits: tuple[Any, ...]) -> list[str]:
    flat = [each for limit in limits for each in (limit if isinstance(limit, GroupedMetadata) else [limit])]
    found = [(sign, getattr(each, key)) for key, sign in SIGNS.items() for each in flat if hasattr(each, key)]
    return [f"{sign} {limit:g}" for sign, limit in found if limit < BEYOND]


def _described(card: Card) -> dict[str, Any]:
    """A card as `--json` prints it."""
    said = options(card)
    return {
        "engine": card.engine,
        "kind": card.kind,
        "name": card.name,
        "summary": card.summary,
        "claim": card.claim,
        "cost": card.cost,
        "paper": card.paper,
        "options": [
            {
                "name": name,
                "values": values(field),
                "default": _default(field),
                "needed": field.is_required(),
                "meaning": said[name],
            }
            for name, field in card.options().model_fields.items()
        ],
    }


def _slot(card: Card) -> str:
    return f"{card.engine} / {card.kind}" if card.kind else card.engine


def _say(console: Console, text: str, indent: int) -> None:
    console.print(Padding(text, (0, 0, 0, indent)), highlight=False)
