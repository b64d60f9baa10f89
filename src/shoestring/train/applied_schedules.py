"""What becomes of a run as its budget is spent: learning rates, weight decay, and the step from which weights are quantised."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from shoestring.contract.model import LanguageModule
from shoestring.optim.composite import Composite
from shoestring.schedule.progress import Schedule
from shoestring.train.edits import Switch


@runtime_checkable
class ScalesWeightDecay(Protocol):
    """What a schedule may have beside its factor on learning rates."""

    def weight_decay(self, progress: float) -> float:
        """The factor on weight decay at `progress`, 0 or more."""
        ...


class AppliedSchedules:
    """The factor on the learning rate as a function of progress, and the rest that hangs on progress, set for each step.

    learning_rate: the factor, warm-up included.
    schedule: the schedule itself, which may say more (`ScalesWeightDecay`).
    switches: edits that take effect while training from some share of the budget on.
    pairs: the model and the optimiser of each worker of this process.

    Nothing here has a state: a resumed run, or one healed by another, has what its progress says. Outside a step every edit takes
    effect, so that whatever evaluates, samples or keeps the model meets the edited one.
    """

    def __init__(
        self,
        learning_rate: Schedule,
        schedule: Schedule,
        switches: Sequence[Switch],
        pairs: Sequence[tuple[LanguageModule, Composite]],
    ) -> None:
        self.learning_rate, self.edits = learning_rate, tuple(switches)
        self.decays = schedule if isinstance(schedule, ScalesWeightDecay) else None
        self.models = [model for model, _ in pairs]
        self.optimizers = [optimizer for _, optimizer in pairs]
        self.weight_decays = [[group.get("weight_decay") for group in o.param_groups] for o in self.optimizers]

    def __call__(self, progress: float) -> float:
        return self.learning_rate(progress)

    @contextmanager
    def step(self, progress: float) -> Iterator[None]:
        """Around a step of training: weight decay and the precision of the weights are those of `progress`."""
        if self.decays is not None:
            self._scale_weight_decay(self.decays.weight_decay(progress))
        waiting = [each for each in self.edits if progress < each.start]
        self._switch(waiting, False)
        try:
            yield
        finally:
            self._switch(waiting, True)

    def switches(self, before: float, progress: float) -> bool:
        """Whether an edit begins to take effect between these two shares of the budget."""
        return any(before < each.start <= progress for each in self.edits)

    def _scale_weight_decay(self, factor: float) -> None:
        # from the values that the run was made with: those of the groups may be another run's, or scaled already
        for optimizer, made in zip(self.optimizers, self.weight_decays, strict=True):
            for group, weight_decay in zip(optimizer.param_groups, made, strict=True):
                if weight_decay is not None:
                    group["weight_decay"] = weight_decay * factor

    def _switch(self, edits: Sequence[Switch], active: bool) -> None:
        for each in edits:
            for model in self.models:
                each.edit.switch(model, active)
