"""Every number that can be configured has a least and a most, so that no slip of a finger is a hang."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt

from shoestring.decode.sampling import Sampling
from shoestring.experts.config import ExpertsConfig
from shoestring.method import methods
from shoestring.train.config import RunConfig


def unbounded(kind: Any, where: str, limits: tuple[Any, ...] = ()) -> Iterator[str]:
    """Where in a type there is a number without both bounds."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        yield from unbounded(inside[0], where, (*limits, *inside[1:]))
    elif origin in (typing.Union, types.UnionType, tuple, list, dict):
        for each in inside:
            yield from unbounded(each, where)
    elif origin is Literal or kind is bool:
        return
    elif dataclasses.is_dataclass(kind):
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            yield from unbounded(hint, f"{where}.{name}")
    elif kind in (int, float):
        flat = [each for limit in limits for each in (limit if isinstance(limit, GroupedMetadata) else [limit])]
        if not (any(isinstance(each, Ge | Gt) for each in flat) and any(isinstance(each, Le | Lt) for each in flat)):
            yield where


def test_the_walk_finds_what_has_no_bounds() -> None:
    @dataclasses.dataclass
    class Example:
        fine: Annotated[int, Interval(ge=0, le=3)]
        parts: tuple[Annotated[float, Interval(gt=0)], ...]
        plain: int | None

    assert list(unbounded(Example, "example")) == ["example.parts", "example.plain"]


BUDGET = {f"run.budget.{unit}" for unit in ("seconds", "flops", "tokens", "bytes", "dollars")}
"""These are amounts, which are checked as such."""


@pytest.mark.parametrize("kind", [RunConfig, ExpertsConfig, Sampling])
def test_every_number_of_a_configuration_has_bounds(kind: type) -> None:
    found = {where.replace("run.run", "run").replace("run.dense", "run") for where in unbounded(kind, "run")}
    assert found - BUDGET == set()


@pytest.mark.parametrize("card", methods(), ids=lambda card: f"{card.engine}-{card.name}")
def test_every_number_of_a_method_has_bounds(card: Any) -> None:
    for name, field in card.options().model_fields.items():
        assert list(unbounded(field.annotation, name, tuple(field.metadata))) == []
