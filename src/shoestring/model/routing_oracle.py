"""How far a model's routing between small and big layers is from the best: every pattern is tried, and each token picks."""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.channel_mixers.duo import DuoFeedForward, Way

WAYS: tuple[Way, ...] = ("skip", "small", "big")


@dataclass(frozen=True)
class OracleLevel:
    """What can be had for so much computation a token.

    flops: of the layers that were chosen, forward, at most.
    fixed: mean loss of the one pattern that is best for all tokens. random: of the patterns of just these FLOPs, on the average.
    oracle: where each token has the pattern that is best for it.
    """

    flops: float
    fixed: float
    random: float
    oracle: float


@dataclass(frozen=True)
class OracleReport:
    """Of a model and a text. Losses are in nats a token.

    levels: by FLOPs. patterns: how many were tried, of how many there are.
    router: (FLOPs a token, loss) of the model's own routing. regret: its loss, less the oracle's whose tokens take no more FLOPs
        than its do on the average; below 0 where routing unevenly over tokens is worth more than knowing the answer.
    difficulty: [N], of each token: its loss where all layers are at their cheapest, less its best loss.
    big: [N], its loss where all layers are big. spent: what it took.
    """

    levels: tuple[OracleLevel, ...]
    patterns: int
    of: int
    router: tuple[float, float]
    regret: float
    difficulty: Tensor
    big: Tensor
    spent: Charge


def oracle_report(model: LanguageModule, batches: Sequence[Batch], *, most: int = 729, seed: int = 0) -> OracleReport:
    """Try patterns of ways through the layers of kind `duo`, and report.

    A pattern is the same for all tokens of a pass, so a token that picks one sees a context that went that way too. All patterns
    are tried where there are at most `most`; else those with one way in all layers, those with one big layer and the others small,
    and draws by `seed`.
    Raises: UsageError where the model has no such layers, or is to route by chance.
    """
    layers = [module for module in model.modules() if isinstance(module, DuoFeedForward)]
    if not layers:
        raise UsageError("an oracle needs layers that have a choice: channel mixers of the kind 'duo'")
    if any(layer.way != "router" for layer in layers):
        raise UsageError("an oracle is compared with a router: set way = router in the layers of the kind 'duo'")
    flops = [dict(zip(WAYS, layer.way_flops(), strict=True)) for layer in layers]
    own, spent = _losses(model, batches)
    taken = [[0] * 3 for _ in layers]
    patterns = list(_patterns(layers, most, seed))
    losses = []
    for pattern in patterns:
        with taking(layers, pattern):
            loss, one = _losses(model, batches)
        losses.append(loss)
        spent += one
    with counting(layers, taken):
        _, one = _losses(model, batches)
    spent += one
    tokens = sum(taken[0])
    router = sum(
        sum(n * each[way] for n, way in zip(row, WAYS, strict=True)) for row, each in zip(taken, flops, strict=True)
    )
    table = torch.stack(losses)
    costs = torch.tensor([float(sum(each[way] for each, way in zip(flops, p, strict=True))) for p in patterns])
    levels = levels_of(table, costs)
    mine = router / tokens, float(own.mean())
    best = [level.oracle for level in levels if level.flops <= mine[0]]
    cheapest = table[int(costs.argmin())]
    total = 1
    for layer in layers:
        total *= 3 - layer.first
    return OracleReport(
        levels,
        len(patterns),
        total,
        mine,
        mine[1] - best[-1] if best else float("nan"),
        cheapest - table.min(0).values,
        table[int(costs.argmax())],
        spent,
    )


def levels_of(losses: Tensor, flops: Tensor) -> tuple[OracleLevel, ...]:
    """losses: [P, N], of each token by pattern. flops: [P]."""
    found = []
    for level in flops.unique().tolist():
        within, just = losses[flops <= level], losses[flops == level]
        found.append(
            OracleLevel(level, float(within.mean(1).min()), float(just.mean()), float(within.min(0).values.mean()))
        )
    return tuple(found)


@contextmanager
def taking(layers: Sequence[DuoFeedForward], pattern: Sequence[Way]) -> Iterator[None]:
    """Within, each layer takes the way that the pattern has for it."""
    before = [layer.way for layer in layers]
    try:
        for layer, way in zip(layers, pattern, strict=True):
            layer.way = way
        yield
    finally:
        for layer, way in zip(layers, before, strict=True):
            layer.way = way


@contextmanager
def counting(layers: Sequence[nn.Module], taken: list[list[int]]) -> Iterator[None]:
    """Within, adds up which way the tokens of each layer took."""

    def hook(number: int) -> "torch.utils.hooks.RemovableHandle":
        def count(_: nn.Module, __: object, found: tuple[Tensor, dict[str, Tensor]]) -> None:
            taken[number] = [a + b for a, b in zip(taken[number], found[1]["load"].tolist(), strict=True)]

        return layers[number].register_forward_hook(count)

    handles = [hook(number) for number in range(len(layers))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _patterns(layers: Sequence[DuoFeedForward], most: int, seed: int) -> Iterator[tuple[Way, ...]]:
    choices = [WAYS[layer.first :] for layer in layers]
    total = 1
    for each in choices:
        total *= len(each)
    if total <= most:
        yield from itertools.product(*choices)
        return
    named: dict[tuple[Way, ...], None] = {}
    for way in choices[0]:
        named[(way,) * len(layers)] = None
    for number in range(len(layers)):
        named[tuple("big" if place == number else "small" for place in range(len(layers)))] = None
    drawn = random.Random(seed)
    while len(named) < most:
        named[tuple(drawn.choice(each) for each in choices)] = None
    yield from named


@torch.no_grad()
def _losses(model: LanguageModule, batches: Sequence[Batch]) -> tuple[Tensor, Charge]:
    """([N], the loss of each target that counts, what it took). The model's mode is left as it was."""
    training, found, spent = model.training, [], NOTHING
    model.eval()
    try:
        for batch in batches:
            reading = model.read(batch.inputs.to(model.device))
            targets = batch.targets.to(model.device).flatten()
            logits = reading.logits().flatten(0, -2).float()
            found.append(
                F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)[targets != IGNORED].cpu()
            )
            places = targets.numel()
            spent += Charge(flops=reading.cost.flops + reading.head.flops(places), read=places, calls=1)
    finally:
        model.train(training)
    return torch.cat(found), spent
