"""What a transfer rule is: from the size of a run to factors on a tuned recipe; and how they are applied.

A rule is a registered method (`kind="transfer"`): called with a `Scale` it gives `Rules`, which at the scale of the base
recipe are all 1. `scale_weights` and `scale_groups` apply them to fresh weights and a fresh optimiser, once each;
`Rules.input` and `Rules.output` are the `input_scale` and `output_scale` of the model.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from shoestring.contract.role import lineage
from shoestring.errors import UsageError


@dataclass(frozen=True)
class Scale:
    """The size of a run. width: of the residual stream. depth: layers. tokens: to be trained on, 0 = not known.

    Raises: ValueError where one of them is no size.
    """

    width: int
    depth: int
    tokens: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1 or not 0 <= self.tokens < math.inf:
            raise ValueError(f"a run has a width and depth of 1 or more, and no fewer than 0 tokens: {self}")


@dataclass(frozen=True)
class RoleRule:
    """Factors for the parameters of one role: on learning rate, weight decay, and the weights first drawn."""

    lr: float = 1.0
    weight_decay: float = 1.0
    initial: float = 1.0


@dataclass(frozen=True)
class Rules:
    """A rule for each role of `optim.partition`, and two factors for the model.

    embedding: a tied one too. output: on the logits. residual: on what each block adds to the residual stream.
    """

    embedding: RoleRule = field(default_factory=RoleRule)
    head: RoleRule = field(default_factory=RoleRule)
    matrix: RoleRule = field(default_factory=RoleRule)
    vector: RoleRule = field(default_factory=RoleRule)
    output: float = 1.0
    residual: float = 1.0

    @property
    def input(self) -> float:
        """1 / residual: on the embedded tokens it has the effect of `residual`, where blocks and head begin with a norm."""
        return 1 / self.residual

    def of(self, role: str) -> RoleRule:
        """The rule of a role, or of what it is a kind of. Raises: UsageError where there is none."""
        for name in lineage(role):
            rule = getattr(self, name, None)
            if isinstance(rule, RoleRule):
                return rule
        raise UsageError(f"no transfer rule is for parameters of the role '{role}'")


class Transfer(Protocol):
    """What `@method("schedule", kind="transfer", ...)` registers."""

    optimizers: ClassVar[frozenset[str]]
    """The optimisers, by name, for whose steps the rule of matrices was derived; empty: it does not depend on them."""

    def __call__(self, scale: Scale) -> Rules:
        """The factors at `scale`; all 1 at the scale of the base recipe."""


def require_optimizer(transfer: Transfer, name: str) -> None:
    """Raises: UsageError where `transfer` is not for matrices that the optimiser `name` moves."""
    if transfer.optimizers and name not in transfer.optimizers:
        known = " or ".join(sorted(transfer.optimizers))
        rule = type(transfer).__name__
        raise UsageError(f"the transfer rule {rule} is for matrices moved by {known}, and these are moved by {name}")


def scale_groups(rules: Rules, groups: Iterable[dict[str, Any]]) -> None:
    """Multiply `lr` (and `base_lr`) and `weight_decay` of each parameter group by the factors of its `role`, in place.

    Once, on a new optimiser; a state restored later brings its own, scaled, options. Raises: UsageError for a group
    without a role.
    """
    for group in groups:
        if "role" not in group:
            raise UsageError("a transfer rule needs the role of every parameter group: build them with a partition")
        rule = rules.of(group["role"])
        for key, factor in (("lr", rule.lr), ("base_lr", rule.lr), ("weight_decay", rule.weight_decay)):
            if key in group:
                group[key] *= factor


@torch.no_grad()
def scale_weights(rules: Rules, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Multiply freshly drawn weights, given as (role, weight), by the `initial` factor of their role, in place.

    Those at 0 stay there.
    """
    for role, weight in weights:
        factor = rules.of(role).initial
        if factor != 1:
            weight.mul_(factor)
