"""One optimiser step of a model that is divided among processes: each computes the gradient of its part of the batch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.budget.charge import FIELDS, Charge
from shoestring.contract.model import LanguageModule
from shoestring.optim.partition import Partition
from shoestring.parallel.layout import ParallelLayout
from shoestring.parallel.optimizer import ShardedOptimizer
from shoestring.parallel.sharding import Sharded, shard
from shoestring.train.step import Stepper


class ShardedStepper(Stepper):
    """A `Stepper` whose batch is one process's part. Figures and charges are those of the whole batch, the same in each process.

    sharded: the model; the optimiser is a `ShardedOptimizer` of it.
    """

    def __init__(self, sharded: Sharded, objective: Any, optimizer: ShardedOptimizer, **options: Any) -> None:
        super().__init__(sharded.model, objective, optimizer, **options)
        self.sharded, self.sharded_optimizer = sharded, optimizer

    @property
    def loss_scale(self) -> float:
        return float(self.sharded.gradient_scale)

    @property
    def over_workers(self) -> Callable[[Tensor], Tensor] | None:
        return self._added_up

    def _added_up(self, tensor: Tensor) -> Tensor:
        """Over the parts of the batch; processes that divide heads read the same part."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total // self.sharded.layout.tensor if self.sharded.layout.tensor > 1 else total

    def _total(self, count: float) -> float:
        return self._over_all([count])[0]

    def _summed(
        self, loss: Tensor, targets: int, spent: Mapping[str, Charge]
    ) -> tuple[Tensor, int, Mapping[str, Charge]]:
        self.sharded.reduce_gradients()
        accounts = sorted(spent)
        counts = [getattr(spent[account], field) for account in accounts for field in FIELDS]
        mean, whole, *sums = self._over_all([float(loss), targets, *counts])
        charges = {
            account: Charge(*(round(each) for each in sums[at * len(FIELDS) : (at + 1) * len(FIELDS)]))
            for at, account in enumerate(accounts)
        }
        return torch.tensor(mean), round(whole), charges

    def _summed_figures(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        names = sorted(figures)
        sums = self._over_all([float(figures[name]) for name in names])
        return {name: torch.tensor(each) for name, each in zip(names, sums, strict=True)}

    def _over_all(self, numbers: list[float]) -> list[float]:
        """The sum of each number over the parts of the batch; processes that divide heads read the same part."""
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        summed: list[float] = (total / self.sharded.layout.tensor).tolist()
        return summed

    def _norm(self, order: float = 2.0) -> Tensor:
        return self.sharded.gradient_norm(order)

    def _clip(self) -> Tensor:
        return self.sharded.clip_gradients(self.clip)

    def _small(self, share: float, tokens: int) -> tuple[float, int] | None:
        """As `Stepper._small`: with `fsdp` of the first micro-batches of all processes, which are summed already; with `data` alone
        of each process's own, of which the mean is as true and less noisy.
        """
        layout = self.sharded.layout
        if layout.fsdp > 1:
            share, counted = self._over_all([share, tokens])
            norm = float(self._norm())
            return ((norm / share) ** 2, round(counted)) if 0 < share < 1 else None
        told = 0 < share < 1
        own = (float(super()._norm()) / share) ** 2 if told else 0.0
        squares, counted, processes = self._over_all([own, float(tokens * told), float(told)])
        return (squares / processes, round(counted / processes)) if processes else None

    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Any) -> None:
        self.sharded.load(weights)
        self.take_optimizer(tensors, values)

    def take_optimizer(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        self.sharded_optimizer.take_state(tensors, values)


def sharded_stepper(
    model: LanguageModule, layout: ParallelLayout, claimed: Partition, objective: Any, **options: Any
) -> tuple[ShardedStepper, str]:
    """(the stepper of a model that is divided now, what dividing its optimisers costs in a line).

    claimed: who optimises which parameters of the model, made before. options: of `Stepper`.
    """
    sharded = shard(model, layout, options["device"])
    optimizer = ShardedOptimizer(sharded, claimed)
    return ShardedStepper(sharded, objective, optimizer, **options), optimizer.describe()
