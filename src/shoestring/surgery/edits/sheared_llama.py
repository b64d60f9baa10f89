"""Pruning to a given shape with masks that are learnt."""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.contract.batch import IGNORED
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, Positive, method
from shoestring.surgery.pruning import axis_of, kept_count, readers
from shoestring.surgery.scored_pruning import ScoredPruning, Scores

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Of the hard concrete distribution: how sharp it is, and how far it is stretched beyond 0 and 1."""


@method(
    "surgery",
    kind="edit",
    name="sheared_llama",
    paper="Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning, arXiv:2310.06694",
    claim="LLaMA2-7B pruned to 1.3B and 2.7B is ahead of models of that size, for 3 % of the compute of training them from scratch",
    cost="`steps` forward and backward passes over batches of the calibration text",
)
class ShearedLLaMA(ScoredPruning):
    """Learn which hidden features and heads a given shape can do without, then cut them.

    Each index i of an axis has a mask z_i, drawn from a hard concrete distribution: with u uniform in (0, 1),

        s = sigmoid((log u - log(1 - u) + a_i) / beta),    z_i = clamp(s (zeta - gamma) + gamma, 0, 1)

    The masks stand on what the output matrices read. With c the number of an axis's indices that are to stay, and c^ the expected
    sum of its masks,

        min over a, max over lambda, phi of   CE + sum over axes of  lambda (c^ - c) / n + phi ((c^ - c) / n)^2

    so each axis ends with the shape that was asked for. Those of the largest a_i stay. The paper learns weights and masks together,
    and masks of layers and of the width too; here the weights stay as they are, and their training is the healing.

    hidden, heads: shares that stay.
    steps: of the search. rate: of Adam for the masks; the multipliers have the same.
    multiple: sizes of hidden are multiples of this.
    """

    needs: frozenset[str] = frozenset({"text", "gradients"})

    def __init__(
        self,
        *,
        hidden: Fraction = 1.0,
        heads: Fraction = 1.0,
        steps: Count = 64,
        rate: Positive = 0.1,
        multiple: Count = 8,
    ) -> None:
        super().__init__(hidden=hidden, heads=heads, multiple=multiple)
        self.steps, self.rate = steps, rate

    def scores(self, model: LanguageModule, evidence: Evidence, kinds: Sequence[str]) -> tuple[Scores, Charge]:
        """As `ScoredPruning.scores`."""
        if not evidence.text:
            raise UsageError("sheared_llama learns its masks on text: none was given to it")
        anatomy, names = model.anatomy(), {}
        keys, wanted = list[tuple[str, int | None]](), list[float]()
        for kind in kinds:
            share, multiple = (
                (self.shares.heads, 1) if kind == "key_value_head" else (self.shares.hidden, self.multiple)
            )
            for axis in anatomy.axes(kind):
                columns = axis_of(anatomy, "head", axis.layer) if kind == "key_value_head" else axis
                (names[kind, axis.layer],) = readers(model, columns)
                keys.append((kind, axis.layer))
                wanted.append(kept_count(axis.size, share, multiple) / axis.size)
        sizes = [axis_of(anatomy, *key).size for key in keys]
        marks = [torch.full((size,), 2.0, device=model.device, requires_grad=True) for size in sizes]
        multipliers = torch.zeros(2, len(keys), device=model.device, requires_grad=True)
        target = torch.tensor(wanted, device=model.device)
        groups: list[dict[str, Any]] = [{"params": marks}, {"params": [multipliers], "maximize": True}]
        search = torch.optim.Adam(groups, lr=self.rate)
        generator = torch.Generator(model.device).manual_seed(evidence.seed)
        asked = [parameter.requires_grad for parameter in model.parameters()]
        spent = Charge()
        model.requires_grad_(False)
        try:
            for _, batch in zip(range(self.steps), itertools.cycle(evidence.text), strict=False):
                drawn = {names[key]: _drawn(mark, generator) for key, mark in zip(keys, marks, strict=True)}
                with _masked(model, drawn):
                    logits = model.read(batch.inputs.to(model.device)).logits().flatten(0, -2).float()
                text = F.cross_entropy(logits, batch.targets.to(model.device).flatten(), ignore_index=IGNORED)
                away = torch.stack([_expected(mark).mean() for mark in marks]) - target
                loss = text + (multipliers[0] * away + multipliers[1] * away.square()).sum()
                search.zero_grad()
                loss.backward()
                search.step()
                # weights take no gradient; the hidden states do
                shape = Shape(batch.rows, batch.inputs.length)
                spent += Charge(flops=2 * model.cost(shape).flops, read=batch.targets.numel(), calls=1)
        finally:
            for parameter, was in zip(model.parameters(), asked, strict=True):
                parameter.requires_grad_(was)
            model.changed()
        return {key: mark.detach().cpu() for key, mark in zip(keys, marks, strict=True)}, spent


def _drawn(marks: Tensor, generator: torch.Generator) -> Tensor:
    """[n]: masks from 0 to 1, of a_i [n]."""
    u = torch.rand(marks.shape, generator=generator, device=marks.device).clamp(1e-6, 1 - 1e-6)
    soft = ((u.log() - (1 - u).log() + marks) / BETA).sigmoid()
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def _expected(marks: Tensor) -> Tensor:
    """[n]: how likely each mask is not 0."""
    return (marks - BETA * math.log(-LOW / HIGH)).sigmoid()


@contextmanager
def _masked(model: nn.Module, masks: dict[str, Tensor]) -> Iterator[None]:
    """While what these modules read is times masks, one for each equal part of their inputs."""
    handles = []
    for name, mask in masks.items():

        def times(_: nn.Module, given: tuple[Tensor, ...], mask: Tensor = mask) -> tuple[Tensor, ...]:
            return (given[0] * mask.repeat_interleave(given[0].shape[-1] // len(mask)), *given[1:])

        handles.append(model.get_submodule(name).register_forward_pre_hook(times))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
