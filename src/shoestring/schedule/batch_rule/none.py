"""Settings as they are, whatever the batch."""

from dataclasses import dataclass
from typing import ClassVar

from shoestring.method import method
from shoestring.schedule.batch_rule.rule import BatchSettings


@method(
    "schedule", kind="batch rule", name="none", claim="the baseline: settings are for the run's own batch", cost="none"
)
@dataclass(frozen=True, kw_only=True)
class NoBatchRule:
    """The settings of the recipe, unchanged: they were chosen for the batch of the run."""

    optimizers: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, settings: BatchSettings, batch: float) -> BatchSettings:
        return settings
