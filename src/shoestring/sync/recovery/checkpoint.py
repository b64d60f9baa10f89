"""Checkpoint restart: every stage is saved now and then, and all go back when one is lost."""

import time
from collections.abc import Sequence

from torch import nn

from shoestring.method import Count, NonNegative, method
from shoestring.sync.pipeline.recovery import Stages
from shoestring.sync.pipeline.route import in_order


@method(
    "sync",
    kind="recovery",
    name="checkpoint",
    claim="exact, at the cost of the steps since the last checkpoint",
    cost="all weights and optimiser states written every `every` steps; on average half of that many steps lost a failure",
)
class CheckpointRestart:
    """Save all stages with their optimisers every `every` steps; when a stage is lost, all go back to the newest checkpoint.

    The steps since then are taken again, with the same batches.

    every: 100 is what the public code of CheckFree (arXiv:2506.15461) compares against.
    keep: how many checkpoints stay.
    download_seconds: a model of storage that is far away, by which every restart is held up; 0 = what reading the local
    disk takes.
    """

    def __init__(self, *, every: Count = 100, keep: Count = 2, download_seconds: NonNegative = 0.0) -> None:
        self.every, self.keep, self.download_seconds = every, keep, download_seconds
        self._saved = False

    def check(self, stages: Sequence[nn.Module]) -> None:
        """Any stages will do."""

    def route(self, number: int, stages: int) -> list[int]:
        return in_order(stages)

    def settle(self, stages: Stages) -> None:
        """Save where it is time to, and what the pipeline begins with too."""
        if stages.step % self.every == 0 or not self._saved:
            stages.save(self.keep)
            self._saved = True

    def recover(self, stages: Stages, lost: Sequence[int]) -> None:
        """Raises: ShoestringError where a checkpoint is damaged."""
        time.sleep(self.download_seconds)
        stages.load()
