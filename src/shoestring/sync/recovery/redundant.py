"""Redundant stages: every stage's weights and optimiser live in two processes."""

from collections.abc import Sequence

from torch import nn

from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.sync.pipeline.recovery import Stages
from shoestring.sync.pipeline.route import in_order, owner, parts_of
from shoestring.sync.recovery.checkfree import need


@method(
    "sync",
    kind="recovery",
    name="redundant",
    claim="none: a plain copy of each stage at a neighbour",
    cost="all weights and optimiser states sent to a neighbour every step, and twice the memory",
)
class Redundant:
    """Every stage is copied to the one before it after each step, and comes back from there as it was.

    It is the recovery that `CheckFree` is compared with, and not Bamboo (Thorpe et al. 2023, arXiv:2204.12013), whose nodes
    each hold the stage after their own as well and compute it redundantly in the pipeline's bubbles, so that weights need not
    travel. Here the state itself is copied, optimiser included: bytes instead of FLOPs. The first stage is held by the second.
    A stage lost after it took a step and before its copy was there comes back one step behind the others.
    """

    def check(self, stages: Sequence[nn.Module]) -> None:
        """Raises: UsageError with fewer than two stages."""
        if len(stages) < 2:
            raise UsageError("redundant needs at least 2 stages: the copy of the only one would die with it")

    def route(self, number: int, stages: int) -> list[int]:
        return in_order(stages)

    def settle(self, stages: Stages) -> None:
        """Copy every part to its neighbour."""
        for part in range(stages.count + 2):
            stages.hold(part, _keeper(owner(part, stages.count)), optimizer=True)

    def recover(self, stages: Stages, lost: Sequence[int]) -> None:
        """Raises: ShoestringError where a stage and the keeper of its copy are lost together."""
        for stage in lost:
            need([_keeper(stage)], stage, lost)
            for part in parts_of(stage, stages.count):
                stages.inherit(part, [(_keeper(stage), part)])


def _keeper(stage: int) -> int:
    """The stage whose process holds the copy of this one."""
    return stage - 1 if stage else 1
