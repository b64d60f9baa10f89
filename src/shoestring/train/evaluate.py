"""Held-out loss, in nats per token and bits per byte."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.model import Head, LanguageModel, causally, require_causal
from shoestring.contract.objective import HeldoutJudge, Taught
from shoestring.data.dataset import Dataset
from shoestring.data.mixed import InTurn
from shoestring.data.windows import BatchSource, Windows
from shoestring.objective.cross_entropy import plain
from shoestring.train.base import teacher_of
from shoestring.train.config import RunConfig
from shoestring.train.precision import autocast

LOGITS, PLACES = 1 << 23, 1024
"""At a time, and the most places that they are of: 32 MiB in float32."""
HELDOUT_ORDER = 0
"""Seed of the order in which held-out windows are taken: one for all runs, so that all are judged on the same text."""


@dataclass(frozen=True)
class Heldout:
    """What held-out text says of a model.

    loss: nats per token.
    bits_per_byte: the same likelihood per byte of text, comparable across tokenizers.
    targets: how many tokens were predicted.
    sequences: windows that were read.
    cut_short: whether there were more.
    spent: what that took.
    domains: the loss on each domain, where there are several.
    """

    loss: float
    bits_per_byte: float
    targets: int
    sequences: int = 0
    cut_short: bool = False
    spent: Charge = NOTHING
    domains: Mapping[str, float] = field(default_factory=dict)


def heldout_windows(config: RunConfig, dataset: Dataset) -> tuple[Windows | InTurn, int]:
    """(the held-out text of a run, how many of its windows are evaluated: the first); of several domains, as many of each."""
    context, packing = config.model.context, config.data.packing
    windows: Windows | InTurn
    if dataset.domains:
        windows = InTurn([Windows(part.heldout, context, HELDOUT_ORDER, packing) for part in dataset.domains])
    else:
        windows = Windows(dataset.heldout, context, HELDOUT_ORDER, packing)
    return windows, min(len(windows), max(1, config.train.heldout_tokens // context))


def heldout_judge(config: RunConfig) -> HeldoutJudge | None:
    """What judges held-out text of a run whose models predict no next token; None: the next tokens do."""
    made = config.objective.build(plain)
    if isinstance(made, HeldoutJudge) and isinstance(made, Taught):
        made.learn_from(*(teacher_of(config, place) for place in made.teachers))
    return made if isinstance(made, HeldoutJudge) else None


class Sums(NamedTuple):
    """What was found on held-out text, summed up.

    nats: of all targets. targets: how many. text: their bytes. flops, read: what it took. done: sequences that were read.
    by_domain: float64 [domains, 2], sum of the losses and number of targets.
    """

    nats: float
    targets: int
    text: int
    flops: int
    read: int
    done: int
    by_domain: np.ndarray


class Evaluator:
    """Evaluates on the first sequences of `source`, `rows` at a time, at most `targets` targets.

    The forward pass is the training one, gradients enabled, although none is taken: a compiled block has one graph
    then, where `torch.no_grad` would compile another in the middle of the run. What a backward pass would need is not kept.

    byte_lengths: [V] bytes of text per token.
    domains: names of the domains that `source` numbers in its batches' extra; none: its batches are of one.
    judge: what judges the text; None: the likelihood of the next token.
    """

    def __init__(
        self,
        source: BatchSource,
        byte_lengths: Tensor,
        *,
        sequences: int,
        rows: int,
        device: str,
        precision: str,
        domains: Sequence[str] = (),
        judge: HeldoutJudge | None = None,
    ) -> None:
        self.domains, self.judge = tuple(domains), judge
        self.source, self.byte_lengths = source, byte_lengths
        self.sequences, self.rows, self.device, self.precision = sequences, rows, device, precision
        self._places = min(PLACES, max(1, LOGITS // len(byte_lengths)))

    def __call__(self, model: LanguageModel, enough: Callable[[], bool] = lambda: False) -> Heldout:
        """The loss of `model`, which stays in the mode that it is in.

        enough: asked after each batch, whether to leave it at that.
        """
        return self._found(self.sums(model, enough))

    def sums(self, model: LanguageModel, enough: Callable[[], bool]) -> "Sums":
        """As a call, what the figures are made of."""
        if self.judge is not None:
            return self._judged(model, enough, self.judge)
        require_causal(model, "held-out loss")
        nats, targets, text, flops, read, done = 0.0, 0, 0, 0, 0, 0
        by_domain = np.zeros((len(self.domains), 2))
        for start in range(0, self.sequences, self.rows):
            if start and enough():
                break
            done = min(start + self.rows, self.sequences)
            batch = self.source.batch(start, min(self.rows, self.sequences - start))
            counted = batch.targets[batch.targets != IGNORED]
            text += int(self.byte_lengths[counted].sum())
            moved = batch.padded(self.rows).to(self.device)
            with autocast(self.device, self.precision):
                with causally(model), _nothing_kept():
                    reading = model.read(moved.inputs)
                if self.domains:
                    found = self._by_domain(reading.head, reading.hidden.detach(), moved.targets, batch)
                    by_domain += found
                    nats += float(found[:, 0].sum())
                else:
                    nats += _summed_loss(reading.head, reading.hidden.detach(), moved.targets, self._places)
            targets += len(counted)
            read += moved.targets.numel()
            flops += reading.cost.flops + reading.head.flops(moved.targets.numel())
        return Sums(nats, targets, text, flops, read, done, by_domain)

    def _judged(self, model: LanguageModel, enough: Callable[[], bool], judge: HeldoutJudge) -> "Sums":
        """As `sums`, of what the objective says."""
        nats, targets, text, flops, read, done = 0.0, 0, 0, 0, 0, 0
        by_domain = np.zeros((len(self.domains), 2))
        for start in range(0, self.sequences, self.rows):
            if start and enough():
                break
            done = min(start + self.rows, self.sequences)
            batch = self.source.batch(start, min(self.rows, self.sequences - start))
            with autocast(self.device, self.precision), _nothing_kept():
                found = judge.judge(model, batch.padded(self.rows).to(self.device))
            losses, tokens = found.nats[: batch.rows].cpu(), found.tokens[: batch.rows].cpu()
            counted = tokens != IGNORED
            text += int(self.byte_lengths[tokens[counted]].sum())
            nats += float(losses.sum())
            targets += int(counted.sum())
            flops += found.spent.flops
            read += found.spent.read
            if self.domains:
                domain = batch.extra["domain"].cpu()
                for number in domain.unique().tolist():
                    own = domain == number
                    by_domain[number] += float(losses[own].sum()), int(counted[own].sum())
        return Sums(nats, targets, text, flops, read, done, by_domain)

    def _by_domain(self, head: Head, hidden: Tensor, targets: Tensor, batch: Batch) -> np.ndarray:
        """float64 [domains, 2]: sum of the losses and number of targets. batch: as it was before rows were added to it."""
        found = np.zeros((len(self.domains), 2))
        for domain in batch.extra["domain"].unique().tolist():
            rows = (batch.extra["domain"] == domain).nonzero()[:, 0].to(hidden.device)
            own = targets[rows]
            found[domain] = _summed_loss(head, hidden[rows], own, self._places), int((own != IGNORED).sum())
        return found

    def _found(self, sums: "Sums") -> Heldout:
        loss = sums.nats / max(sums.targets, 1)
        spent = Charge(flops=sums.flops, read=sums.read)
        domains = {
            name: float(own / count) for name, (own, count) in zip(self.domains, sums.by_domain, strict=True) if count
        }
        bits = sums.nats / math.log(2) / max(sums.text, 1)
        return Heldout(loss, bits, sums.targets, sums.done, sums.done < self.sequences, spent, domains)


def _nothing_kept() -> saved_tensors_hooks:
    """Within this a forward pass that records gradients keeps no activations: each is freed when the next layers have read it."""
    return saved_tensors_hooks(lambda tensor: None, _none_is_left)


def _none_is_left(_: object) -> Tensor:
    raise RuntimeError("a backward pass through an evaluation, which keeps nothing for it")


@torch.no_grad()
def _summed_loss(head: Head, hidden: Tensor, targets: Tensor, rows: int) -> float:
    """Sum of the losses, the logits of so many places at a time."""
    flat, goals = hidden.flatten(0, -2), targets.flatten()
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    for start in range(0, flat.shape[0], rows):
        logits = head.logits(flat[start : start + rows]).float()
        part = goals[start : start + rows]
        total += F.cross_entropy(logits, part, ignore_index=IGNORED, reduction="sum")
    return float(total)
