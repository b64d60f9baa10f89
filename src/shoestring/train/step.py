"""One optimiser step: the gradients of a batch, in micro-batches, clipped, applied."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoestring.data.windows import Batch
from shoestring.model.transformer import Transformer
from shoestring.optim.composite import Composite, scale_learning_rates

Objective = Callable[[nn.Module, Batch], tuple[Tensor, int]]


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the targets of the batch, nats. gradient_norm: before clipping. targets: how many counted."""

    loss: float
    gradient_norm: float
    targets: int


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    """Run matrix products in bfloat16 where that is the precision; the weights stay float32."""
    if precision == "bfloat16":
        return torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext()


def split(batch: Batch, size: int) -> list[Batch]:
    """The batch in micro-batches of `size` sequences."""
    if size >= batch.inputs.shape[0]:
        return [batch]

    def part(tensor: Tensor | None, rows: slice) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    parts = []
    for start in range(0, batch.inputs.shape[0], size):
        rows = slice(start, start + size)
        parts.append(
            Batch(
                batch.inputs[rows],
                batch.targets[rows],
                part(batch.positions, rows),
                part(batch.documents, rows),
            )
        )
    return parts


class Stepper:
    """Takes optimiser steps. micro_batch: sequences at once. clip: largest gradient norm.

    `gradients` and `apply` are apart so that an exchange between workers, or a look at the loss, fits between them.
    """

    def __init__(
        self,
        model: Transformer,
        objective: Objective,
        optimizer: Composite,
        *,
        device: str,
        precision: str,
        micro_batch: int,
        clip: float,
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.device, self.precision, self.micro_batch, self.clip = device, precision, micro_batch, clip

    def gradients(self, batch: Batch) -> StepResult:
        """Accumulate the gradient of the batch's mean loss into the parameters, and clip it."""
        targets = max(batch.tokens, 1)
        total = torch.zeros((), device=self.device)
        for part in split(batch, self.micro_batch):
            share = part.tokens / targets
            with autocast(self.device, self.precision):
                loss, _ = self.objective(self.model, part.to(self.device))
            (loss * share).backward()
            total += loss.detach() * share
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        return StepResult(float(total), float(norm), targets)

    def apply(self, learning_rate_factor: float) -> None:
        """Step the optimiser at its learning rates times the factor, and clear the gradients."""
        scale_learning_rates(self.optimizer, learning_rate_factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
