"""The interface of a method of kind 'selection', and what they work out of a model: losses and gradients of rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.model import LanguageModel, Reading, require_causal
from shoestring.contract.objective import At

OpenModel = Callable[[str], LanguageModel]
"""Opens the model at a place, which reads the same tokens as that which is trained."""

BLOCK = 1024
"""Places whose logits are held at a time."""


class Chosen(NamedTuple):
    """rows: int64, ascending, on the CPU: of the larger batch. spent: what choosing took, charged to 'selection'."""

    rows: Tensor
    spent: Charge


class Selection(Protocol):
    """Is made of what opens models and of its options.

    more: how many times as many rows are drawn as are trained on; a whole number, 2 or more.
    """

    more: int

    def choose(self, model: LanguageModel, parts: Sequence[Batch], rows: int, at: At) -> Chosen:
        """As many rows as are to be trained on.

        model: as it is before the step. parts: the larger batch in micro-batches, in order. rows: how many to choose.
        at: where the run stands; whatever is drawn comes from its generator.
        """
        ...


def row_losses(model: LanguageModel, parts: Sequence[Batch]) -> tuple[Tensor, Charge]:
    """(float32 [B] on the CPU: the mean loss of each row, nats, 0 where nothing counts; what that took)."""
    found, spent = [], NOTHING
    for part in parts:
        moved = part.to(model.device)
        reading, took = _read(model, moved)
        losses = torch.cat([_losses(reading, moved, here) for here in _blocks(moved)])
        total = losses.view(moved.targets.shape).sum(dim=1)
        found.append((total / (moved.targets != IGNORED).sum(dim=1).clamp_min(1)).cpu())
        spent += took
    return torch.cat(found), spent


def row_means(
    model: LanguageModel, parts: Sequence[Batch], figure: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Charge]:
    """(float32 [B] on the CPU: the mean of a figure of each row's distributions, 0 where nothing counts; what that took).

    figure: of log-probabilities [n, V] to [n].
    """
    found, spent = [], NOTHING
    for part in parts:
        moved = part.to(model.device)
        reading, took = _read(model, moved)
        hidden = reading.hidden.detach().flatten(0, -2)
        with torch.no_grad():
            each = [figure(reading.head.logits(hidden[here]).float().log_softmax(-1)) for here in _blocks(moved)]
        counted = moved.targets != IGNORED
        total = (torch.cat(each).view(moved.targets.shape) * counted).sum(dim=1)
        found.append((total / counted.sum(dim=1).clamp_min(1)).cpu())
        spent += took
    return torch.cat(found), spent


def sketched_gradients(model: LanguageModel, parts: Sequence[Batch], width: int, seed: int) -> tuple[Tensor, Charge]:
    """(float32 [B, width] on the CPU: sketches of each row's gradient, whose dot products are near those of the gradients; cost).

    The gradient is that of a row's mean loss in the output matrix: G = 1/T sum_t (p_t - y_t) h_t^T. Its sketch has the entries
    1/(T sqrt(width)) sum_t (a_k . (p_t - y_t)) (b_k . h_t), where a_k and b_k are drawn from a normal distribution: the mean of
    the product of two sketches is that of their gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    left: Tensor | None = None
    right: Tensor | None = None
    found, spent = [], NOTHING
    for part in parts:
        moved = part.to(model.device)
        reading, took = _read(model, moved)
        hidden, targets = reading.hidden.detach().flatten(0, -2).float(), moved.targets.flatten()
        if left is None or right is None:
            size = model.about.vocabulary
            left = torch.randn(size, width, generator=generator).to(model.device)
            right = torch.randn(hidden.shape[1], width, generator=generator).to(model.device)
        sketches = []
        for here in _blocks(moved):
            with torch.no_grad():
                shares = reading.head.logits(reading.hidden.detach().flatten(0, -2)[here]).float().softmax(dim=-1)
                goals = targets[here]
                counted = (goals != IGNORED)[:, None]
                residual = shares @ left[: shares.shape[1]] - left[goals.clamp_min(0)]
                sketches.append(torch.where(counted, residual * (hidden[here] @ right), 0.0))
        rows = torch.cat(sketches).view(*moved.targets.shape, width).sum(dim=1)
        counts = (moved.targets != IGNORED).sum(dim=1).clamp_min(1)
        found.append((rows / counts[:, None] / width**0.5).cpu())
        products = 2 * targets.numel() * width * (model.about.vocabulary + hidden.shape[1])
        spent += took + Charge(flops=products)
    return torch.cat(found), spent


def projection_gradients(model: LanguageModel, parts: Sequence[Batch]) -> tuple[Tensor, Charge]:
    """(float32 [B, width * width] on the CPU: the gradient of each row's mean loss in a matrix before the head; what that took).

    The matrix P is the identity, h' = P h, and its gradient G = 1/T sum_t (dl_t / dh'_t) h_t^T: exact, for any head, without a
    backward pass through the blocks.
    """
    found, spent = [], NOTHING
    for part in parts:
        moved = part.to(model.device)
        reading, took = _read(model, moved)
        hidden, targets = reading.hidden.detach().flatten(0, -2), moved.targets.flatten()
        slopes = [_slopes(reading, hidden[here], targets[here]) for here in _blocks(moved)]
        shape = (*moved.targets.shape, hidden.shape[1])
        products = torch.cat(slopes).view(shape).transpose(1, 2) @ hidden.float().view(shape)
        counts = (moved.targets != IGNORED).sum(dim=1).clamp_min(1)
        found.append((products / counts[:, None, None]).flatten(1).cpu())
        places = targets.numel()
        spent += took + Charge(flops=reading.head.flops(places) + 2 * places * hidden.shape[1] ** 2)
    return torch.cat(found), spent


def _slopes(reading: Reading, hidden: Tensor, targets: Tensor) -> Tensor:
    """float32 [places, width]: of the summed loss, in the hidden states."""
    given = hidden.clone().requires_grad_()
    with torch.enable_grad():
        logits = reading.head.logits(given).float()
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        (slopes,) = torch.autograd.grad(loss, given)
    return slopes.float()


def _read(model: LanguageModel, batch: Batch) -> tuple[Reading, Charge]:
    """The forward pass of training, gradients enabled although none is taken: a compiled block has one graph then."""
    require_causal(model, "choosing rows by their loss")
    reading = model.read(batch.inputs)
    positions = batch.targets.numel()
    return reading, Charge(flops=reading.cost.flops + reading.head.flops(positions), read=positions)


def _blocks(batch: Batch) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, batch.targets.numel(), BLOCK)]


@torch.no_grad()
def _losses(reading: Reading, batch: Batch, here: slice) -> Tensor:
    """float32: the loss at each of these places, 0 where nothing counts."""
    logits = reading.head.logits(reading.hidden.detach().flatten(0, -2)[here]).float()
    return F.cross_entropy(logits, batch.targets.flatten()[here], ignore_index=IGNORED, reduction="none")
