"""Tokens that were looked at most."""

import torch
from torch import Tensor

from shoestring.decode.cache_policy import Seen
from shoestring.method import Fraction, method


@method(
    "decode",
    kind="cache policy",
    name="h2o",
    paper="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, arXiv:2306.14048",
    claim="with a fifth of the cache, OPT, LLaMA and GPT-NeoX answer as well over many tasks, at up to 29 times the throughput",
    cost="attention once more at each pass: 2 H n S D operations a layer for n new tokens; a number a place and head",
)
class HeavyHitters:
    """Keep the tokens that all later ones together looked at most, and the latest.

        score(i) = sum_t sum_h A_h[t, i],   infinity for the latest

    A: attention of the tokens read so far, of the query heads h that share a head of keys.

    latest: the share of the cache that the latest tokens have.

    The source gives them half, and counts each head of queries by itself; here the heads that share keys are one, as they lose them
    together.
    """

    figures, window = 1, 0

    def __init__(self, *, latest: Fraction = 0.5) -> None:
        self.latest = latest

    def score(self, seen: Seen) -> Tensor:
        """As `CachePolicy.score`."""
        return protected(seen.figures[..., 0], self.latest)

    def watch(self, figures: Tensor, attention: Tensor, first: int) -> None:
        """Add up what the new tokens look at."""
        figures[..., 0] += attention.sum((1, 2))


def protected(scores: Tensor, share: float) -> Tensor:
    """The scores [Hk, S], those of the last `share` of the places infinite."""
    found = scores.clone()
    latest = int(scores.shape[-1] * share)
    if latest:
        found[:, -latest:] = torch.inf
    return found
