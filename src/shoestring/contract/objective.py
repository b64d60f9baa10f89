"""What a model is trained for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel


class At(NamedTuple):
    """Where a run stands as an objective is asked.

    step: number of the step, from 0.
    progress: spent share of the budget, in [0, 1].
    seed: of the run; what is drawn depends on it, the step and the part alone.
    part: number of the micro-batch within the step.
    """

    step: int = 0
    progress: float = 0.0
    seed: int = 0
    part: int = 0

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator of this step and part: the same whenever it is asked for."""
        mixed = (self.seed * 1_000_003 + self.step) * 8191 + self.part
        return torch.Generator(device).manual_seed(mixed % 2**63)


@dataclass(frozen=True)
class Loss:
    """What an objective says of a batch.

    mean: over what counts, to be differentiated.
    spent: what computing it costs, backward pass included, by the account that pays.
    parts: figures beside it, by name, detached; each is a line of the metrics.
    auxiliary: what the model's own layers add to what is minimised (`Reading.auxiliary`); None: nothing.
    """

    mean: Tensor
    spent: Mapping[str, Charge]
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    auxiliary: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """What is to be differentiated: the mean, and what layers add."""
        return self.mean if self.auxiliary is None else self.mean + self.auxiliary


class Objective(Protocol):
    """A loss of a model on a batch. One for models that see both ways has a class attribute `both_ways = True`: no other is given
    such a model, which would see what it is to predict."""

    def count(self, batch: Batch) -> float:
        """How much of the batch counts, asked on the CPU before the pass: micro-batches weigh as this says."""
        ...

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The loss of a batch that lies on the model's device."""
        ...


@runtime_checkable
class Taught(Protocol):
    """An objective that asks other models.

    teachers: the places of those models, at least one; '': what the run is based on.
    """

    teachers: tuple[str, ...]

    def learn_from(self, *teachers: LanguageModel) -> None:
        """Set the teachers, once they are opened: in evaluation mode, without gradients, on the model's device."""
        ...


class Judged(NamedTuple):
    """What an objective says of held-out text.

    nats: float64 [B, T], of each place. tokens: [B, T] int64, the token that was judged there, `IGNORED` where none was.
    spent: what that took.
    """

    nats: Tensor
    tokens: Tensor
    spent: Charge


@runtime_checkable
class HeldoutJudge(Protocol):
    """An objective whose models have no next token to be judged by: it judges held-out text itself.

    figure: what its nats a token are, in a few words.
    """

    figure: str

    def judge(self, model: LanguageModel, batch: Batch) -> Judged:
        """Judge the text of a batch that lies on the model's device: the same whenever it is asked of the same batch."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """An objective that is the mean cross-entropy of logits: curvature can draw labels from them, and differentiate twice."""

    def logits(self, model: LanguageModel, batch: Batch, at: At) -> Tensor:
        """[..., V], in operations that can be differentiated twice."""
        ...

    def labels(self, batch: Batch) -> Tensor:
        """[...] int64: what the logits are to predict, `IGNORED` where nothing counts."""
        ...
