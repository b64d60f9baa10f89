"""What a weigher is, and what the weighers share."""

from typing import Protocol

import torch
from torch import Tensor

from shoestring.config import Pick
from shoestring.errors import UsageError

EXPERT_WEIGHTS = Pick("decode", "expert weights", default="cluster_distance")


class Weigher(Protocol):
    """Gives the weights p(D = j | x_<=t) of E experts at every place t of a text.

    every: weights are worked out anew at the places 0, every, 2 every ... and stand until the next.
    needs_likelihood: whether every expert has to read everything.
    """

    every: int
    needs_likelihood: bool

    def __call__(self, tokens: Tensor, likelihood: Tensor | None) -> Tensor:
        """[B, T, E], each place adding up to 1. Those at place t hang on nothing after token t.

        tokens: [B, T]. likelihood: [B, T, E], log p_j(token t | tokens before it), 0 at t = 0, where it is needed.
        """
        ...


def updates(length: int, every: int) -> Tensor:
    """int64: the places below `length` at which weights are worked out."""
    return torch.arange(0, length, every)


def spread(weights: Tensor, length: int, every: int) -> Tensor:
    """[B, T, E] from [B, updates, E]: each update's weights at every place until the next."""
    return weights.repeat_interleave(every, dim=1)[:, :length]


def keep_top(weights: Tensor, k: int) -> Tensor:
    """The weights [..., E] with all but the k largest set to 0, and the rest scaled to add up to 1; of equals, the first
    are kept. 0 = keep all. Raises: UsageError where there are fewer."""
    experts = weights.shape[-1]
    if k > experts:
        raise UsageError(f"the {k} heaviest of {experts} experts cannot be consulted: there are fewer")
    if k in (0, experts):
        return weights
    chosen = weights.argsort(dim=-1, descending=True, stable=True)[..., :k]
    kept = torch.zeros_like(weights).scatter(-1, chosen, weights.gather(-1, chosen))
    return kept / kept.sum(dim=-1, keepdim=True)
