"""The square root scaling rule for Adam."""

import math
from dataclasses import dataclass
from typing import ClassVar

from shoestring.errors import UsageError
from shoestring.method import Count, method
from shoestring.schedule.batch_rule.rule import BatchSettings, ratio


@method(
    "schedule",
    kind="batch rule",
    name="square_root",
    paper="On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, arXiv:2205.10287",
    claim="keeps the stochastic differential equation of RMSprop and Adam as the batch changes; "
    "checked in vision and language settings",
    cost="none",
)
@dataclass(frozen=True, kw_only=True)
class SquareRootBatchRule:
    """Adam's learning rate by the root of the batch, its averages and epsilon with it.

    Malladi, Lyu, Panigrahi & Arora (2022), arXiv:2205.10287. With kappa = batch / reference:

        lr' = sqrt(kappa) lr,   beta' = 1 - kappa (1 - beta) for both betas,   epsilon' = epsilon / sqrt(kappa)

    It keeps the stochastic differential equation that Adam follows where the gradient's noise outweighs the gradient.
    Differs: weight decay, which the paper has none of, stays what it is. That the rule holds for Adam-mini is our reading.

    reference: sequences a step at which the settings were tuned.

    Raises: UsageError where a batch is not above zero, or kappa (1 - beta) is above 1: so large a batch has no such beta.
    """

    optimizers: ClassVar[frozenset[str]] = frozenset({"adamw", "adam_mini"})

    reference: Count

    def __call__(self, settings: BatchSettings, batch: float) -> BatchSettings:
        kappa = ratio(batch, self.reference)
        return BatchSettings(
            lr=settings.lr * math.sqrt(kappa),
            beta1=_beta("beta1", settings.beta1, kappa),
            beta2=_beta("beta2", settings.beta2, kappa),
            epsilon=None if settings.epsilon is None else settings.epsilon / math.sqrt(kappa),
        )


def _beta(name: str, beta: float | None, kappa: float) -> float | None:
    if beta is None:
        return None
    if not kappa * (1 - beta) <= 1:
        raise UsageError(f"a batch {kappa:g} times as large has no {name} to match {beta:g}")
    return 1 - kappa * (1 - beta)
