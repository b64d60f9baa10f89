"""What a recovery policy is, and what it may ask of the pipeline."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from shoestring.errors import UsageError


class Stages(Protocol):
    """The pipeline as a policy sees it. Parts are numbered as in `pipeline.route`; `source` stages are numbered from 0.

    Everything here may raise StageLost, when another stage is lost meanwhile: let it through, `recover` will be called
    again with that stage among the lost.
    """

    count: int
    step: int

    def inherit(
        self, part: int, sources: Sequence[tuple[int, int]], *, power: float = 2.0, lr_scale: float = 1.0
    ) -> None:
        """Make a new part of others: sum_k w_k W_k / sum_k w_k, w_k = ||G_k||^power.

        sources: (stage, part) pairs: the stage owns the part or holds a copy of it. G_k: the gradient its last step applied.
        lr_scale: factor on the new part's learning rates from now on. The optimiser starts afresh, unless the one
        source is a copy held with its optimiser's state, which is then taken too.
        """
        ...

    def hold(self, part: int, at: int, *, optimizer: bool = False) -> None:
        """Send a copy of a part as it is now to the process of another stage; it replaces the copy held there."""
        ...

    def save(self, keep: int) -> None:
        """Write a checkpoint of all stages, and keep the newest `keep`. Nothing is done where this step has one."""
        ...

    def load(self) -> None:
        """Roll all stages back to the newest checkpoint."""
        ...


class Recovery(Protocol):
    """A policy."""

    def check(self, stages: Sequence[nn.Module]) -> None:
        """Raises: UsageError where it cannot work with these stages (without the first and last parts)."""
        ...

    def route(self, number: int, stages: int) -> list[int]:
        """The order of parts for micro-batch `number`, counted over the whole run."""
        ...

    def settle(self, stages: Stages) -> None:
        """Called at the start, after every step, and after every recovery: make the copies or checkpoints that are due."""
        ...

    def recover(self, stages: Stages, lost: Sequence[int]) -> None:
        """Fill the new, empty processes of the lost stages. Raises: ShoestringError where that cannot be done."""
        ...


def body(stage: int) -> int:
    """The part that is a stage's own."""
    return stage + 1


def check_alike(stages: Sequence[nn.Module], name: str) -> None:
    """Raises: UsageError where one stage's weights could not stand in for another's.

    name: of the policy that needs it.
    """
    shapes = [{key: tensor.shape for key, tensor in stage.state_dict().items()} for stage in stages]
    for number, other in enumerate(shapes):
        if other != shapes[0]:
            raise UsageError(f"{name} needs stages of the same shape: stage {number} differs from stage 0")
