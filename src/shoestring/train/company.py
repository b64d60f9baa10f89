"""What takes the steps of a run: a worker, and the company of workers that it is one of.

A `Worker` computes: gradients, steps, its state. The `Company` decides what all workers do, and accounts for what they do
together. One worker alone is a company of one.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from shoestring.budget.ledger import Totals
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.train.noise_scale import NoiseScale
from shoestring.train.step import Stepper, StepResult
from shoestring.train.vote import Vote


class Worker(Protocol):
    """Computes the steps of this process.

    model: as it is to be judged within `Company.evaluation_weights`, and after `Company.finish`.
    noise_scale: None where it is not measured.
    """

    model: LanguageModule
    noise_scale: NoiseScale | None

    def gradients(self, batch: Batch, at: At) -> StepResult:
        """Leave the gradient of the batch's mean loss, clipped, where `apply` finds it.

        batch: of this process.
        at: where the run stands; the seed is the run's own.
        """
        ...

    def apply(self, learning_rate_factor: float) -> None:
        """Step on the gradient.

        learning_rate_factor: on every learning rate.
        """
        ...

    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Any) -> None:
        """Back to what a checkpoint kept.

        weights: of the model.
        tensors, values: as `CheckpointedWorker.state` gave them.
        Raises: ShoestringError where they are of another run.
        """
        ...


@runtime_checkable
class CheckpointedWorker(Protocol):
    """A `Worker` whose process keeps checkpoints of its own."""

    def weights(self) -> dict[str, Tensor]:
        """The model as a checkpoint holds it."""
        ...

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """What a run needs beside `weights` to go on exactly: (tensors by name, JSON values). The tensors are the live
        ones."""
        ...


class Company(Protocol):
    """Decides for all workers of a run, of which this process has one or more."""

    @property
    def leads(self) -> bool:
        """Whether it is this process that judges the run and speaks for it."""
        ...

    @property
    def processes(self) -> int:
        """How many processes spend as much as this one does."""
        ...

    def at(self, step: int) -> int:
        """Steps of the run, where this process has counted `step`."""
        ...

    def spent(self, own: Totals) -> Totals:
        """What counts against the budget, where `own` is what this process has spent."""
        ...

    def decide(self, step: int, vote: Vote) -> Vote:
        """What all workers do after `step` steps, where this one would do as `vote` says."""
        ...

    def agree(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number among the processes that must take the same step; where each may take its own, they are
        what they were."""
        ...

    def figures(self) -> dict[str, float]:
        """What a line of metrics says of the workers, beside their loss."""
        ...

    def summary(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """What summary.json says of the workers.

        own: what it says of this process; what is returned is laid over it.
        """
        ...

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Around an evaluation: puts the weights that are to be judged in the model."""
        ...

    def conclude(self) -> None:
        """After the last step: exchange what the workers have not exchanged yet."""
        ...

    def finish(self) -> None:
        """At the very end: leave the weights in the model that the run is for."""
        ...


class CompanyOfOne:
    """The `Company` of one worker: what it would do is done."""

    leads, processes = True, 1

    def __init__(self, worker: Stepper) -> None:
        self.worker = worker

    def at(self, step: int) -> int:
        return step

    def spent(self, own: Totals) -> Totals:
        return own

    def decide(self, step: int, vote: Vote) -> Vote:
        return vote

    def agree(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def figures(self) -> dict[str, float]:
        return {}

    def summary(self, own: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def evaluation_weights(self) -> AbstractContextManager[None]:
        return self.worker.optimizer.evaluation_weights()

    def conclude(self) -> None:
        """One worker has nothing to exchange."""

    def finish(self) -> None:
        self.worker.optimizer.eval()
