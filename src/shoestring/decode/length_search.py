"""A search for how many tokens of a prompt each layer takes in, for budgets of operations."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.length_drop import DroppingCache, counts_of, even_shares
from shoestring.contract.model import LanguageModel, Reading
from shoestring.errors import UsageError


@dataclass(frozen=True)
class FoundSchedule:
    """shares: of a prompt that each layer takes in. flops: of reading the prompts, next to reading them whole. loss: the divergence
    of what comes next from what the whole model says, in nats."""

    shares: tuple[float, ...]
    flops: float
    loss: float


@torch.no_grad()
def search_schedules(
    model: LanguageModel, prompts: Sequence[Tensor], *, generations: int = 10, population: int = 16, seed: int = 0
) -> tuple[list[FoundSchedule], Charge]:
    """(the schedules that none other beats in both operations and loss, in order of operations; what the search took).

    Gyuwan Kim and Kyunghyun Cho, 2021, arXiv:2010.07003: an evolution of schedules. A mutation draws shares anew between those of
    the neighbours, a crossing takes the mean of two; parents are those that none beats. The first are even schedules. Where the
    source measures accuracy on labelled texts, here it is KL(p || q) of the next token's distribution, of the whole model and the
    thinned one, so that no labels are needed.

    prompts: token ids [n] each.
    """
    if not prompts:
        raise UsageError("a search for schedules reads some prompts: give one or more")
    layers, drawn = model.about.layers, random.Random(seed)
    whole, spent = list[Tensor](), NOTHING
    for ids in prompts:
        reading = model.read(Inputs(ids[None].to(model.device)))
        whole.append(reading.head.logits(reading.hidden[0, -1]).float().log_softmax(-1))
        spent += Charge(flops=reading.cost.flops + reading.head.flops(1), read=len(ids), calls=1)
    total = spent.flops - sum(reading.head.flops(1) for _ in prompts)
    known: dict[tuple[float, ...], FoundSchedule] = {}

    def measure(shares: tuple[float, ...]) -> None:
        nonlocal spent
        if shares in known:
            return
        loss, flops = 0.0, 0
        for ids, p in zip(prompts, whole, strict=True):
            reading = read_thinned(model, ids, shares)
            q = reading.head.logits(reading.hidden[0, -1]).float().log_softmax(-1)
            loss += float((p.exp() * (p - q)).sum()) / len(prompts)
            flops += reading.cost.flops
            spent += Charge(flops=reading.cost.flops + reading.head.flops(1), read=len(ids), calls=1)
        known[shares] = FoundSchedule(shares, flops / total, loss)

    for place in range(population):
        budget = 1 / layers + (1 - 1 / layers) * (place + 1) / population
        measure(tuple(round(share, 4) for share in even_shares(layers, budget)))
    for _ in range(generations):
        parents = [one.shares for one in front(list(known.values()))]
        for place in range(population):
            first, second = drawn.choice(parents), drawn.choice(parents)
            measure(_mutated(first, drawn) if place % 2 else _mean(first, second))
    return front(list(known.values())), spent


def read_thinned(model: LanguageModel, ids: Tensor, shares: Sequence[float]) -> Reading:
    """What a model reads of a prompt [n] by a schedule."""
    cache = DroppingCache(counts_of(shares, len(ids)), len(ids), len(ids))
    return model.read(Inputs(ids[None].to(model.device)), cache)


def front(found: Sequence[FoundSchedule]) -> list[FoundSchedule]:
    """Those that none other beats: with fewer operations, or as many, there is no smaller loss."""
    best, kept = float("inf"), list[FoundSchedule]()
    for one in sorted(found, key=lambda one: (one.flops, one.loss)):
        if one.loss < best:
            kept.append(one)
            best = one.loss
    return kept


def within(found: Sequence[FoundSchedule], budget: float) -> FoundSchedule:
    """The schedule of the least loss within a share of the operations. Raises: UsageError where there is none, with the least."""
    able = [one for one in found if one.flops <= budget]
    if not able:
        least = min(one.flops for one in found)
        raise UsageError(f"no schedule was found within {budget:.3g} of the operations: the least takes {least:.3g}")
    return min(able, key=lambda one: one.loss)


def _mutated(shares: tuple[float, ...], drawn: random.Random) -> tuple[float, ...]:
    """Each share but the first is drawn anew, in one case of two, between those before and after it."""
    made = list(shares)
    for place in range(1, len(made)):
        if drawn.random() < 0.5:
            after = made[place + 1] if place + 1 < len(made) else 0.0
            made[place] = round(drawn.uniform(after, made[place - 1]), 4)
    return tuple(made)


def _mean(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round((one + other) / 2, 4) for one, other in zip(first, second, strict=True))
