"""Slow references for caches that evict: every token is kept, one is read at a time, and what was evicted is masked.

Scores are written from the papers, in loops, and share no code with the policies.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.model import LanguageModel

Slow = Callable[["MaskedLayer", int, list[int]], list[float]]
"""(layer, head of keys, the places that are there) -> how much each matters."""


class MaskedLayer:
    """All keys and values of one text in one layer, and which places of each head are there."""

    rewindable, nbytes = False, 0

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: list[Tensor] = []  # [Hk, D] each
        self.values: list[Tensor] = []
        self.queries: list[Tensor] = []  # [H, D] each
        self.there: list[list[int]] = []  # of each head, in order
        self.seen: list[list[dict[int, list[float]]]] = []
        """Of each token that was read and each head of keys: what each query head of its group gives each place; by place."""
        self.scale = 1.0
        self.window = 1 << 20

    def begin(self, coming: Any) -> None:
        pass

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        assert queries.shape[2] == 1
        now, heads = len(self.keys), keys.shape[1]
        self.scale = queries.shape[3] ** -0.5 if scale is None else scale
        self.window = window or self.window
        self.keys.append(keys[0, :, 0])
        self.values.append(values[0, :, 0])
        self.queries.append(queries[0, :, 0])
        self.there = self.there or [[] for _ in range(heads)]
        group = queries.shape[1] // heads
        out, seen = [], []
        for head in range(heads):
            self.there[head].append(now)
            visible = [place for place in self.there[head] if now - place < self.window]
            gives: dict[int, list[float]] = {place: [0.0] * group for place in self.there[head]}
            for each in range(group):
                query = queries[0, head * group + each, 0]
                scores = torch.stack([query @ self.keys[place][head] * self.scale for place in visible])
                weights = scores.softmax(0)
                out.append(
                    sum(weight * self.values[place][head] for weight, place in zip(weights, visible, strict=True))
                )
                for weight, place in zip(weights.tolist(), visible, strict=True):
                    gives[place][each] = weight
            seen.append(gives)
        self.seen.append(seen)
        return torch.stack(out)[None, :, None]

    def evict(self, slow: Slow, count: int) -> None:
        for head, places in enumerate(self.there):
            scores = slow(self, head, places)
            best = sorted(zip(scores, places, strict=True), reverse=True)[:count]  # of equal ones the later
            self.there[head] = sorted(place for _, place in best)


def window(layer: MaskedLayer, head: int, places: list[int]) -> list[float]:
    return [math.inf if place < 4 else place for place in places]


def keydiff(layer: MaskedLayer, head: int, places: list[int]) -> list[float]:
    directions = [layer.keys[place][head] / layer.keys[place][head].norm() for place in places]
    anchor = sum(directions) / len(directions)
    return [-float(one @ anchor / anchor.norm()) for one in directions]


def _latest(scores: list[float], count: int) -> list[float]:
    return scores[: len(scores) - count] + [math.inf] * count


def h2o(layer: MaskedLayer, head: int, places: list[int]) -> list[float]:
    scores = [sum(sum(seen[head].get(place, [0.0])) for seen in layer.seen) for place in places]
    return _latest(scores, len(places) // 2)


def snapkv(layer: MaskedLayer, head: int, places: list[int]) -> list[float]:
    """With 3 observed tokens and a kernel of 3."""
    group = len(layer.queries[0]) // len(layer.there)
    means = [0.0] * len(places)
    last = list(range(len(layer.queries) - 3, len(layer.queries)))
    for token in last:
        visible = [place for place in places if 0 <= token - place < layer.window]
        for each in range(group):
            query = layer.queries[token][head * group + each]
            weights = torch.stack([query @ layer.keys[place][head] * layer.scale for place in visible]).softmax(0)
            for place, weight in zip(visible, weights.tolist(), strict=True):
                means[places.index(place)] += weight / (3 * group)
    padded = [0.0, *means, 0.0]
    return _latest([sum(padded[at : at + 3]) / 3 for at in range(len(places))], 3)


def lazy_eviction(layer: MaskedLayer, head: int, places: list[int]) -> list[float]:
    """With alpha = 0.1."""
    scores, now = [], len(layer.seen) - 1
    for place in places:
        last, longest = place, 0
        for step in range(place, now + 1):
            if max(layer.seen[step][head].get(place, [0.0])) >= 0.1:
                last, longest = step, max(longest, step - last)
        recurs = 2 / (1 + math.exp(longest - 1)) if longest else 0.0
        within = 2 / (1 + math.exp(min(1 + (now - last) / (longest + 1e-5), 700)))
        scores.append(float(torch.tensor(within + recurs)))  # as float32 has it: what is equal there is a tie
    return _latest(scores, len(places) // 10)


SLOW: dict[str, tuple[dict[str, Any], Slow]] = {
    "window": ({"sinks": 4}, window),
    "keydiff": ({}, keydiff),
    "h2o": ({"latest": 0.5}, h2o),
    "snapkv": ({"observed": 3, "kernel": 3}, snapkv),
    "lazy_eviction": ({"alpha": 0.1, "latest": 0.1}, lazy_eviction),
}
"""Of each policy: its options, and its slow reference."""


@torch.no_grad()
def read_masked(
    model: LanguageModel, prompt: tuple[int, ...], count: int, slow: Slow, most: int, stride: int, whole: bool = False
) -> tuple[list[int], list[list[list[int]]]]:
    """(what is written greedily, of each layer and head the tokens that are there in the end)."""
    layers = [MaskedLayer(number) for number in range(model.about.layers)]
    text, held, written = list(prompt), 0, list[int]()
    while True:
        # a cache of its own for each token: it does not hold what it says, the layers do
        cache = Cache(layers, 1, model.about.context)
        read = len(layers[0].keys)
        cache.lengths = [read]
        logits = model.read(Inputs(torch.tensor([[text[read]]])), cache).logits()
        held, read = held + 1, read + 1
        cut = held >= most if not whole or read > len(prompt) else read == len(prompt) and held > most - stride
        if cut:
            for layer in layers:
                layer.evict(slow, most - stride)
            held = most - stride
        if read == len(text):
            written.append(int(logits[0, -1].argmax()))
            text.append(written[-1])
        if len(written) == count:
            return written, [layer.there for layer in layers]
