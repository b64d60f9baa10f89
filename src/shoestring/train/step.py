"""One optimiser step: the gradients of a batch, in micro-batches, clipped, applied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.budget.charge import NOTHING, Charge
from shoestring.budget.ledger import MODEL, SELECTION
from shoestring.contract.batch import Batch
from shoestring.contract.edit import Metered, Stepped
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At, Objective
from shoestring.data.selection import Selection
from shoestring.optim.composite import Composite, scale_learning_rates
from shoestring.optim.state import flatten_state, restore_state
from shoestring.parallel.activation_checkpointing import recomputed_flops
from shoestring.train.base import put_weights
from shoestring.train.curvature import curvature_of
from shoestring.train.noise_scale import NoiseScale
from shoestring.train.precision import autocast


@dataclass(frozen=True)
class StepResult:
    """What a step came to.

    loss: mean over the targets of the batch, nats.
    gradient_norm, gradient_norm_1: the 2-norm and the 1-norm of the gradient before clipping.
    targets: how many counted.
    spent: what the step takes, the optimiser's own work included, by the account that pays.
    figures: what the objective tells beside its loss, and edits that are `Metered`; 'auxiliary': what layers add to what is
        minimised.
    """

    loss: float
    gradient_norm: float
    gradient_norm_1: float
    targets: int
    spent: Mapping[str, Charge]
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Accumulated:
    """Gradients that lie in the parameters; the figures are where they were computed until they are read, as a look at a GPU
    waits for all that it was given."""

    loss: Tensor
    gradient_norm: Tensor
    gradient_norm_1: Tensor
    targets: int
    spent: Mapping[str, Charge]
    figures: Mapping[str, Tensor] = field(default_factory=dict)

    def read(self) -> StepResult:
        norms = float(self.gradient_norm), float(self.gradient_norm_1)
        figures = {name: float(value) for name, value in self.figures.items()}
        return StepResult(float(self.loss), *norms, self.targets, self.spent, figures)


def together(*spent: Mapping[str, Charge]) -> dict[str, Charge]:
    """What several took, by account."""
    total: dict[str, Charge] = {}
    for each in spent:
        for account, charge in each.items():
            total[account] = total.get(account, NOTHING) + charge
    return total


class Stepper:
    """Takes optimiser steps: the `Worker` of one model.

    micro_batch: sequences at once.
    context: places of a whole row, where rows may be shorter: of those, as many more are taken at once. None: rows are as they are.
    clip: largest gradient norm.
    selection: chooses the rows that are trained on from a batch of `selection.more` times as many. None: all are.
    seed: of what is drawn on the way.
    noise_scale: is shown the gradient of the first micro-batch beside that of the whole batch, every `noise_scale_every` steps.
    stepped: edits that do something around every step.
    checkpointed: whether layers are computed again in the backward pass, which is charged.

    `gradients` and `apply` are apart so that an exchange between workers, or a look at the loss, fits between them.
    """

    def __init__(
        self,
        model: LanguageModule,
        objective: Objective,
        optimizer: Composite,
        *,
        device: str,
        precision: str,
        micro_batch: int,
        context: int | None = None,
        selection: Selection | None = None,
        clip: float,
        seed: int = 0,
        noise_scale: NoiseScale | None = None,
        noise_scale_every: int = 1,
        stepped: Sequence[Stepped] = (),
        checkpointed: bool = False,
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.device, self.precision, self.micro_batch, self.clip = device, precision, micro_batch, clip
        self.context, self.selection = context, selection
        self.seed, self.noise_scale, self.noise_scale_every = seed, noise_scale, noise_scale_every
        self.stepped, self._at, self.checkpointed = tuple(stepped), At(), checkpointed

    def gradients(self, batch: Batch, at: At) -> StepResult:
        """Accumulate the gradient of the batch's mean loss into the parameters, and clip it."""
        return self.accumulate(batch, at).read()

    def accumulate(self, batch: Batch, at: At) -> Accumulated:
        """`gradients`, whose figures are to be read later: so that several workers of one GPU need not wait for each other."""
        self._at = at = at._replace(seed=self.seed)
        batch, choosing = self._selected(batch, at)
        more = 1 if self.context is None else max(1, self.context // batch.inputs.length)
        parts = batch.split(self.micro_batch * more)
        counts = [self.objective.count(part) for part in parts]
        whole = self._total(sum(counts)) or 1
        measured = self.noise_scale is not None and len(parts) > 1 and at.step % self.noise_scale_every == 0
        targets = max(batch.tokens, 1)
        total = torch.zeros((), device=self.device)
        first: tuple[float, int] | None = None  # a squared norm, and of how many tokens
        figures: dict[str, Tensor] = {}
        spent: dict[str, Charge] = {MODEL: Charge(tokens=targets)}
        listening: list[Any] = [module for module in self.model.modules() if hasattr(module, "begin_part")]
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            share = count / whole
            for module in listening:
                module.begin_part(number, self.over_workers)
            with autocast(self.device, self.precision):
                loss = self.objective(self.model, part.to(self.device), at._replace(part=number))
            (loss.total * (share * self.loss_scale)).backward()
            total += loss.mean.detach() * share
            told = loss.parts if loss.auxiliary is None else {**loss.parts, "auxiliary": loss.auxiliary}
            for name, value in told.items():
                figures[name] = figures.get(name, torch.zeros_like(total)) + value.detach() * share
            spent = together(spent, loss.spent)
            if self.checkpointed:
                again = recomputed_flops(self.model, part.rows, part.inputs.length)
                spent = together(spent, {MODEL: Charge(flops=again)})
            if measured and first is None:
                first = self._small(share, part.tokens)
        total, targets, summed = self._summed(total, targets, spent)
        figures = self._summed_figures(figures)
        spent = together(summed, {MODEL: Charge(flops=self.optimizer.step_flops())})
        for edit in self.stepped:
            spent = together(spent, {MODEL: edit.before_step(self.model, at)})
            if isinstance(edit, Metered):
                figures |= edit.figures(self.model)
        norm_1 = self._norm(1.0)
        norm = self._clip()
        if self.noise_scale is not None and first is not None:
            self.noise_scale.measure(first[0], first[1], float(norm) ** 2, targets)
        spent = together(spent, choosing, self._curvature(parts[0], at))
        return Accumulated(total, norm, norm_1, targets, spent, figures)

    @property
    def loss_scale(self) -> float:
        """By what a loss is multiplied before its backward pass."""
        return 1.0

    @property
    def over_workers(self) -> Callable[[Tensor], Tensor] | None:
        """Adds a tensor up over the processes that share this step, each of which asks; None: it is the only one."""
        return None

    def _total(self, count: float) -> float:
        """What counts in the whole batch, of which this process has `count`."""
        return count

    def _summed(
        self, loss: Tensor, targets: int, spent: Mapping[str, Charge]
    ) -> tuple[Tensor, int, Mapping[str, Charge]]:
        """Loss, targets and charges of the whole batch, whose gradient the parameters hold from here on."""
        return loss, targets, spent

    def _summed_figures(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The figures of the whole batch, of which this process has the shares of its part."""
        return figures

    def _small(self, share: float, tokens: int) -> tuple[float, int] | None:
        """(the squared norm of the gradient of a first part of the batch, its tokens), for the noise scale.

        Nothing but that part's gradient lies in the parameters by then. share: of the whole batch. None: it tells nothing.
        """
        return ((float(self._norm()) / share) ** 2, tokens) if 0 < share < 1 else None

    def _clip(self) -> Tensor:
        """Clip the gradient. Returns its norm before."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)

    def _selected(self, batch: Batch, at: At) -> tuple[Batch, dict[str, Charge]]:
        """(the rows that are trained on, what choosing them took)."""
        if self.selection is None:
            return batch, {}
        with autocast(self.device, self.precision):
            rows = max(1, batch.rows // self.selection.more)
            chosen = self.selection.choose(self.model, batch.split(self.micro_batch), rows, at)
        return batch.take(chosen.rows), {SELECTION: chosen.spent}

    def _norm(self, order: float = 2.0) -> Tensor:
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None], order)

    def _curvature(self, batch: Batch, at: At) -> dict[str, Charge]:
        """Give the optimiser the second derivatives it asks for. Returns what that took."""
        if not self.optimizer.wants_curvature():
            return {}
        curvature = curvature_of(
            self.objective,
            self.model,
            batch.to(self.device),
            at,
            device=self.device,
            precision=self.precision,
            seed=(self.seed * 1_000_003 + at.step) % 2**63,
        )
        self.optimizer.observe(curvature)
        return {MODEL: Charge(flops=curvature.flops)}

    def apply(self, learning_rate_factor: float) -> None:
        """Step the optimiser at its learning rates times the factor, and clear the gradients."""
        scale_learning_rates(self.optimizer, learning_rate_factor)
        self.optimizer.step()
        for edit in self.stepped:
            edit.after_step(self.model, self._at)
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def state(self) -> tuple[dict[str, Tensor], Any]:
        return flatten_state(self.optimizer)

    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Any) -> None:
        put_weights(self.model, weights)
        self.take_optimizer(tensors, values)

    def take_optimizer(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        """The optimiser's state alone, as `state` gave it. Raises: ShoestringError where it is of another optimiser."""
        restore_state(self.optimizer, tensors, values)
