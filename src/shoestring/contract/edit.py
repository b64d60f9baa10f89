"""An edit: one change of a model's structure or weights. A model is a base and an ordered list of edits.

An edit first decides, for which it may look at text, gradients or a teacher; the decision is saved. Then it applies, which is
deterministic and needs no data. So a model is rebuilt from its folder, and any edit composes with any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At


@dataclass(frozen=True)
class Decision:
    """What an edit decided.

    values: JSON values.
    tensors: by name.
    spent: what deciding took.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    spent: Charge = NOTHING


@dataclass(frozen=True)
class Evidence:
    """What an edit may look at to decide.

    seed: of whatever it draws.
    text: batches of calibration text; empty where none is given.
    """

    seed: int = 0
    text: tuple[Batch, ...] = ()


class Edit(Protocol):
    """One change of a model.

    needs: what `decide` looks at: 'text', 'gradients', 'teacher'; empty for an edit that looks at the model alone.

    An edit after which a model reads longer texts has an option `context`, so many tokens, by which a run knows of it.
    One that says `divides = True` leaves a model whose parts compute and learn as any do: several processes may train it, each on
    its rows and with its part of the weights, as one process would.
    """

    needs: frozenset[str]

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Choose what to change; the model stays as it is. Raises: UsageError where the edit does not fit the model."""
        ...

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The changed model; the given one may be changed in place. No data, no chance, and meta tensors are enough."""
        ...

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model of plain layers that computes the same, for export. Raises: UsageError where there is none."""
        ...

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        """What was changed, in a line or a few."""
        ...


@runtime_checkable
class Switched(Protocol):
    """What an edit may have beside: a share of the budget before which training goes on as if it were not there."""

    active: Any
    """The rule that says from when on, as a `Choice` of the kind 'quantise'."""

    bits: float
    """Of a weight, once it is active."""

    def switch(self, model: LanguageModule, active: bool) -> None:
        """Have the edit take effect in `model`, or not."""
        ...


@runtime_checkable
class Stepped(Protocol):
    """What an edit may have beside: something that it does around every step of the optimiser.

    What it remembers from step to step lies in buffers of the model, so that checkpoints hold it. Returned is what that took.
    """

    def before_step(self, model: LanguageModule, at: At) -> Charge:
        """The gradients of the batch lie in the parameters, not clipped yet: it may look at them, and add to them."""
        ...

    def after_step(self, model: LanguageModule, at: At) -> None:
        """The optimiser has moved the parameters, whose gradients are still there."""
        ...


@runtime_checkable
class Metered(Protocol):
    """What a `Stepped` edit may have beside: figures that are logged with the loss."""

    def figures(self, model: LanguageModule) -> Mapping[str, Tensor]:
        """Scalars by name, of the step before; they lie in buffers of the model as well."""
        ...


def divides(edit: Edit) -> bool:
    """Whether several processes may train a model with this edit together."""
    return bool(getattr(edit, "divides", False)) and not isinstance(edit, Stepped)
