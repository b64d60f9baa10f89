"""The linear scaling rule: the learning rate grows with the batch."""

from dataclasses import dataclass
from typing import ClassVar

from shoestring.method import Count, method
from shoestring.schedule.batch_rule.rule import BatchSettings, ratio, with_lr


@method(
    "schedule",
    kind="batch rule",
    name="linear",
    paper="Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, arXiv:1706.02677",
    claim="on ImageNet, with a warm-up, no loss of accuracy up to minibatches of 8192 images",
    cost="none",
)
@dataclass(frozen=True, kw_only=True)
class LinearBatchRule:
    """SGD's learning rate, in proportion to the batch.

    Goyal et al. (2017), arXiv:1706.02677: when the batch is multiplied by k, multiply the learning rate by k, so that one
    step goes as far as k steps did while the gradient stays the same. With batch b and reference b0:

        lr' = lr b / b0

    It wants a warm-up, which is the run's own (`train.warmup`).

    reference: sequences a step at which the settings were tuned. Raises: UsageError where a batch is not above zero.
    """

    optimizers: ClassVar[frozenset[str]] = frozenset({"sgd"})

    reference: Count

    def __call__(self, settings: BatchSettings, batch: float) -> BatchSettings:
        return with_lr(settings, ratio(batch, self.reference))
