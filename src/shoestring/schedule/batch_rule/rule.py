"""What a batch rule is: from settings tuned at one batch size to those for another; and how it is applied."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from shoestring.errors import UsageError


@dataclass(frozen=True)
class BatchSettings:
    """What depends on the batch size in a parameter group; None: the optimiser has no such setting.

    lr: the learning rate. beta1, beta2: decay a step, in [0, 1). epsilon: what is added to Adam's root.
    """

    lr: float
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None


class BatchRule(Protocol):
    """What `@method("schedule", kind="batch rule", ...)` registers."""

    optimizers: ClassVar[frozenset[str]]
    """The optimisers, by name, whose matrices the rule is for; empty: any."""

    def __call__(self, settings: BatchSettings, batch: float) -> BatchSettings:
        """The settings at `batch` sequences a step; those given where that is the batch they were tuned at."""


def ratio(batch: float, reference: float) -> float:
    """batch / reference. Raises: UsageError where one is not above zero."""
    if not (0 < batch < math.inf and 0 < reference < math.inf):
        raise UsageError(f"batch sizes are above zero, not {batch} and {reference}")
    return batch / reference


def require_optimizer(rule: BatchRule, name: str, optimizer: str) -> None:
    """Raises: UsageError where the rule `name` is not for matrices that `optimizer` moves."""
    if rule.optimizers and optimizer not in rule.optimizers:
        known = " or ".join(sorted(rule.optimizers))
        raise UsageError(
            f"batch_rule = {name} is for {known}, and optim = {optimizer}: choose one of them, or another rule"
        )


def scale_to_batch(rule: BatchRule, groups: Iterable[dict[str, Any]], batch: float) -> list[str]:
    """Set learning rates, betas and epsilon of fresh parameter groups to what `rule` makes of them at `batch`, in place.

    Once, on a new optimiser. Returns what was changed, a line a group. Raises: UsageError where the rule has no such
    settings.
    """
    said = []
    for group in groups:
        before = _read(group)
        after = rule(before, batch)
        _write(group, before, after)
        changed = [
            f"{key} {was:.4g} -> {now:.4g}"
            for key in ("lr", "beta1", "beta2", "epsilon")
            if (was := getattr(before, key)) != (now := getattr(after, key))
        ]
        if changed:
            said.append(f"{group.get('role', 'parameters')}: {', '.join(changed)}")
    return said


def _read(group: dict[str, Any]) -> BatchSettings:
    beta1, beta2 = group.get("betas", (group.get("beta1"), group.get("beta2")))
    return BatchSettings(group["lr"], beta1, beta2, group.get("eps", group.get("epsilon")))


def _write(group: dict[str, Any], before: BatchSettings, after: BatchSettings) -> None:
    if "base_lr" in group:
        group["base_lr"] *= after.lr / before.lr
    values: dict[str, Any] = {"lr": after.lr, "beta1": after.beta1, "beta2": after.beta2}
    values |= {"betas": (after.beta1, after.beta2), "epsilon": after.epsilon, "eps": after.epsilon}
    group.update({key: value for key, value in values.items() if key in group})


def with_lr(settings: BatchSettings, factor: float) -> BatchSettings:
    """The same settings, their learning rate times `factor`."""
    return replace(settings, lr=settings.lr * factor)
