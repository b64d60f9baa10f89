"""A target of loss: recipes of quantisation, what each takes and what it loses, for a search to choose among."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shoestring.config import Choice
from shoestring.contract.anatomy import Matrix
from shoestring.errors import UsageError
from shoestring.quantise.format import CodeFormat

WRITTEN = re.compile(r"loss\s*\+\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)", re.IGNORECASE)

GROUPS = (128, 64, 32)
"""Columns that share parameters, of the recipes that are tried. Multiples of 32 stay packed in the kernels."""

SOLVERS = ("rtn", "gptq")
"""The cheapest first."""


def loss_target(text: str) -> float | None:
    """The nats a token that 'loss+0.01' allows; None for another kind of target. Raises: UsageError for one that is not above 0."""
    found = WRITTEN.fullmatch(text.strip())
    if not found:
        if text.strip().lower().startswith("loss"):
            raise UsageError(f"--to {text} is no target of loss: say loss+0.01, in nats a token")
        return None
    if not 0 < float(found[1]) < 100:
        raise UsageError(f"--to {text}: a rise of the loss is above 0 and below 100 nats a token")
    return float(found[1])


@dataclass(frozen=True)
class RecipeChoice:
    """A way to quantise all matrices alike. format: of codes, `bits` wide. size: bytes of the matrices."""

    format: Choice
    bits: int
    solver: Choice
    size: int

    @property
    def said(self) -> str:
        """In words."""
        group = self.format.options.get("group")
        groups = "" if group is None else f" in groups of {group}" if group else " a row"
        return f"{self.bits} bits{groups} by {self.solver.name}"


class RecipeTrials(Protocol):
    """What a search has to go by. limit: nats a token that the loss may rise."""

    limit: float

    @property
    def sizes(self) -> Sequence[Sequence[RecipeChoice]]:
        """Recipes of the same bytes together, the smallest first; in each the cheapest solver first."""
        ...

    def rise(self, recipe: RecipeChoice) -> float:
        """Nats a token that the held-out loss rises with it: the model is quantised and measured."""
        ...

    def over(self) -> bool:
        """Whether the budget is spent."""
        ...


class RecipeSearch(Protocol):
    """Finds a recipe. A method of the kind 'recipe search'."""

    def choose(self, trials: RecipeTrials) -> RecipeChoice:
        """A recipe that was tried and is within the limit. Raises: UsageError where there is none, with the least that there is."""
        ...


def recipes(
    format: str, options: Mapping[str, object], solver: Choice | None, matrices: Sequence[Matrix]
) -> list[list[RecipeChoice]]:
    """The recipes of a format, by size.

    options: of the format that are settled; a group that is not among them is tried.
    solver: the only one; None: each of `SOLVERS`.
    Raises: UsageError for a format of one width.
    """
    first = Choice.of("quantise", format, kind="format", **options)
    groups = GROUPS if "group" in first.options and "group" not in options else (None,)
    solvers = [Choice.of("quantise", name, kind="solver") for name in SOLVERS] if solver is None else [solver]
    found: dict[int, list[RecipeChoice]] = {}
    for group in groups:
        form = first if group is None else first.with_options(group=group)
        built: CodeFormat = form.build()
        if not built.widths:
            raise UsageError(f"the format '{format}' has one width of codes: a target of loss has nothing to choose")
        for bits in built.widths:
            sized = built.at(bits)
            size = sum(sized.size(*one.weight.shape) for one in matrices)
            # of the same bytes one is enough: the last has the smaller groups, or of equal groups more bits in place of minimums
            found[size] = [RecipeChoice(form, bits, one, size) for one in solvers]
    return [found[size] for size in sorted(found)]


@dataclass
class NothingFits:
    """The best of what a search tried and could not take. tried: (rise, recipe)."""

    limit: float
    tried: list[tuple[float, RecipeChoice]] = field(default_factory=list)

    def error(self, over: Callable[[], bool]) -> UsageError:
        """What to say of it."""
        why = "the budget ended before a recipe was found" if over() else "no recipe that was tried does"
        if not self.tried:
            return UsageError(f"a loss of {self.limit:g} more at most: {why}: give more --budget")
        rise, recipe = min(self.tried, key=lambda one: one[0])
        return UsageError(
            f"a loss of {self.limit:g} more at most: {why}; the least was {rise:+.4f} nats a token, of {recipe.said}: "
            "ask for that, or for another --format or --transform"
        )
