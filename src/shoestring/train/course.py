"""What becomes of a run as its budget is spent: learning rates, weight decay, and the step from which weights are quantised."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import nn

from shoestring.lowbit.convert import lowered_layers
from shoestring.optim.composite import Composite
from shoestring.schedule.progress import Schedule


@runtime_checkable
class ScalesWeightDecay(Protocol):
    """What a schedule may have beside its factor on learning rates."""

    def weight_decay(self, progress: float) -> float:
        """The factor on weight decay at `progress`, 0 or more."""
        ...


class Course:
    """The factor on the learning rate as a function of progress, and the rest that hangs on progress, set for each step.

    learning_rate: the factor, warm-up included. schedule: the schedule itself, which may say more (`ScalesWeightDecay`).
    quantised_from: the share of the budget from which on lowered layers are active while training. pairs: the model and the
    optimiser of each worker of this process.

    Nothing here has a state: a resumed run, or one healed by another, has what its progress says. Outside a step every lowered
    layer is active, so that whatever evaluates, samples or keeps the model meets the quantised one.
    """

    def __init__(
        self,
        learning_rate: Schedule,
        schedule: Schedule,
        quantised_from: float,
        pairs: Sequence[tuple[nn.Module, Composite]],
    ) -> None:
        self.learning_rate, self.quantised_from = learning_rate, quantised_from
        self.decays = schedule if isinstance(schedule, ScalesWeightDecay) else None
        self.layers = [layer for model, _ in pairs for layer in lowered_layers(model)]
        self.optimizers = [optimizer for _, optimizer in pairs]
        self.weight_decays = [[group.get("weight_decay") for group in o.param_groups] for o in self.optimizers]

    def __call__(self, progress: float) -> float:
        return self.learning_rate(progress)

    @contextmanager
    def step(self, progress: float) -> Iterator[None]:
        """Around a step of training: weight decay and the precision of the weights are those of `progress`."""
        if self.decays is not None:
            self._scale_weight_decay(self.decays.weight_decay(progress))
        if progress >= self.quantised_from:
            yield
            return
        self._set_active(False)
        try:
            yield
        finally:
            self._set_active(True)

    def switches(self, before: float, progress: float) -> bool:
        """Whether the weights begin to be quantised between these two shares of the budget."""
        return before < self.quantised_from <= progress

    def _scale_weight_decay(self, factor: float) -> None:
        # from the values that the run was made with: those of the groups may be another run's, or scaled already
        for optimizer, made in zip(self.optimizers, self.weight_decays, strict=True):
            for group, weight_decay in zip(optimizer.param_groups, made, strict=True):
                if weight_decay is not None:
                    group["weight_decay"] = weight_decay * factor

    def _set_active(self, active: bool) -> None:
        for layer in self.layers:
            layer.active = active
