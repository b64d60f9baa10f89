"""Tokens that are looked at again and again, for as long as they may be looked at once more."""

import torch
from torch import Tensor

from shoestring.decode.cache_policies.h2o import protected
from shoestring.decode.cache_policy import Seen
from shoestring.method import Fraction, method

TINY = 1e-5
"""In place of a longest pause of 0."""


@method(
    "decode",
    kind="cache policy",
    name="lazy_eviction",
    paper="LazyEviction: Lagged KV Eviction with Attention Pattern Observation for Efficient Long Reasoning, arXiv:2506.15969",
    claim="half of the cache or less at comparable accuracy on mathematical reasoning",
    cost="attention once more at each pass: 2 H n S D operations a layer for n new tokens; two numbers a place and head",
)
class LazyEviction:
    """Keep the tokens that are looked at again and again, for as long as their longest pause so far lets them be looked at again.

    A token i is active at step t where some query head of its group looks at it with at least alpha. TS_i is the last such step (at
    first the step at which it was read), MRI_i the largest distance of two such steps that follow one another (at first 0).

        score(i) = 2 sigma(-1 - (t - TS_i) / MRI_i) + 2 sigma(1 - MRI_i)

    The first term falls as a token is silent for longer than its longest pause; the second prefers tokens that come back soon.
    Of a token that never came back, MRI_i is 0: the first term is then 0 unless it is active now, and the second is left out.
    The latest tokens stay (`latest`). Eviction is lagged: `stride` places at a time, the observation window W of the source, which
    also keeps the latest W tokens. The form is that of the authors' code; their text has no 1 in the first term.

    alpha: attention from which on a token is active.
    latest: the share of the cache that the latest tokens have.

    The source chooses for each head of queries; here those that share keys are one. Tokens of a prompt count as steps too: the
    source counts from the first written one.
    """

    figures, window = 2, 0

    def __init__(self, *, alpha: Fraction = 0.01, latest: Fraction = 0.1) -> None:
        self.alpha, self.latest = alpha, latest

    def score(self, seen: Seen) -> Tensor:
        """As `CachePolicy.score`."""
        last, longest = seen.figures.double().unbind(-1)  # the second term may be small beside the first
        pause = seen.read - last  # `last` counts from 1, so that 0 says that nothing was noted
        recurs = torch.where(longest > 0, 2 * torch.sigmoid(1 - longest), 0.0)
        return protected(2 * torch.sigmoid(-1 - pause / (longest + TINY)) + recurs, self.latest)

    def watch(self, figures: Tensor, attention: Tensor, first: int) -> None:
        """Note when each place was looked at, and its longest pause."""
        new, size = attention.shape[2:]
        if new == 1:  # as below, for one token: it is done in every layer for every token that is written
            looked, step = attention.amax((1, 2)) >= self.alpha, first + 1.0
            figures[:, -1, 0] = step
            pause = (step - figures[..., 0]).mul_(looked)
            torch.maximum(figures[..., 1], pause, out=figures[..., 1])
            figures[..., 0].masked_fill_(looked, step)
            return
        steps = torch.arange(first + 1, first + new + 1, device=figures.device, dtype=figures.dtype)
        born = torch.arange(size, device=figures.device) - (size - new)  # of the new places, the step that read them
        start = torch.where(born >= 0, born + first + 1, figures[..., 0])
        active = attention.amax(1) >= self.alpha  # [Hk, n, S]
        when = torch.where(active, steps[:, None], 0.0)
        before = torch.cat((start[:, None], torch.maximum(when.cummax(1).values, start[:, None])), 1)
        pauses = torch.where(active, when - before[:, :-1], 0.0).amax(1)
        figures[..., 1] = torch.maximum(figures[..., 1], pauses)
        figures[..., 0] = before[:, -1]
