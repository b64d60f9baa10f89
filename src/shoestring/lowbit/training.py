"""An edit that trains a model's matrices for a number format: what such edits share."""

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any

from shoestring.config import Choice, Pick
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.lowbit.activations import Activations
from shoestring.lowbit.convert import lower, lowered, lowered_layers, unpack
from shoestring.lowbit.format import Format

ACTIVE = Pick("schedule", "quantise", default="always")
"""How an edit's option `active` is read: a rule for the share of the budget from which on weights are quantised."""


class FormatTraining:
    """Weights trained for a number format: every linear layer of the blocks computes with its quantised weight, and the gradient
    passes straight through to the latent one.

    format: the number format.
    activations: what the inputs of those layers are rounded to.
    keep: patterns of the names of layers that stay in full precision, beside embedding, output head and norms.
    active: when the weights begin to be quantised, as a share of the budget; outside a step of training they always are.

    A subclass `class X(FormatTraining, of=Y)` has the options of the format Y and these; with `of=Y, scale="row"` another default
    of one of Y's. Its docstring explains them.
    """

    needs: frozenset[str] = frozenset()
    divides = True

    def __init_subclass__(cls, *, of: type[Format] | None = None, **defaults: object) -> None:
        super().__init_subclass__()
        if of is not None:
            setattr(cls, "__init__", _with_options_of(of, defaults))  # noqa: B010 (mypy forbids the plain form)

    def __init__(self, format: Format, activations: Activations, keep: Sequence[str], active: Choice) -> None:
        self.format, self.activations, self.keep, self.active = format, activations, tuple(keep), active

    @property
    def bits(self) -> float:
        """Of a quantised weight."""
        return self.format.bits

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Nothing: the options say it all."""
        return Decision()

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with its layers lowered. Raises: UsageError where nothing is left to lower, or a matrix does not divide."""
        lower(model, self.format, self.activations, self.keep)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Plain layers with the quantised numbers; a rounding of activations is left out."""
        unpack(model)
        return model

    def switch(self, model: LanguageModule, active: bool) -> None:
        """Compute with quantised weights, or with the latent ones."""
        for layer in lowered_layers(model):
            layer.active = active

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        rounded = "" if self.activations == "none" else f", activations {self.activations}"
        options = ", ".join(f"{key} = {value}" for key, value in asdict(self.format).items())
        name = type(self.format).__name__.lower()
        return f"{name} weights ({options}){rounded}: {lowered(model).describe()}"


def _own_options(
    *,
    activations: Activations = "none",
    keep: tuple[str, ...] = (),
    active: Annotated[Choice, ACTIVE] = ACTIVE.choice(),  # noqa: B008 (frozen)
) -> None:
    """The options of every such edit, beside the format's."""


def _with_options_of(format: type[Format], defaults: dict[str, object]) -> Callable[..., None]:
    """An `__init__` whose keyword-only parameters are the fields of a format, its own first, and the options of every edit.

    Raises: TypeError for a default of what the format has not.
    """
    known = sorted(fields(format), key=lambda one: one.name in Format.__dataclass_fields__)
    if unknown := defaults.keys() - {one.name for one in known}:
        raise TypeError(f"{format.__name__} has no {', '.join(sorted(unknown))}")

    def __init__(self: FormatTraining, **options: Any) -> None:
        given = {one.name: options.pop(one.name, defaults.get(one.name, one.default)) for one in known}
        every = {name: options.get(name, one.default) for name, one in shared.items()}
        FormatTraining.__init__(self, format(**given), **every)

    shared = inspect.signature(_own_options).parameters
    hints = typing.get_type_hints(format, include_extras=True)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(one.name, one.default))
        for one in known
    ]
    setattr(__init__, "__signature__", inspect.Signature([itself, *named, *shared.values()]))  # noqa: B010
    own = typing.get_type_hints(_own_options, include_extras=True)
    __init__.__annotations__ = {one.name: hints[one.name] for one in known} | own
    return __init__
