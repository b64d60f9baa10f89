"""Several models of one shape made into one, by averaging their weights."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.method import method

Module = TypeVar("Module", bound=nn.Module)


@method(
    "sync",
    kind="merge",
    name="weighted_average",
    paper="Branch-Train-Merge, arXiv:2208.03306",
    claim="experts of one seed can be averaged into one model for efficient inference",
    cost="one pass over the weights of each expert",
)
def weighted_average(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """theta = sum_j w_j theta_j over the experts' weights by name, sum_j w_j = 1.

    The parameter average of Li et al. (2022), "Branch-Train-Merge", arXiv:2208.03306, w being uniform (None here) or the
    posterior of the domains for the text in question. It helps where the experts lie in one basin: branched from one
    seed and not trained far. Sums are taken in float64, in the order of the experts, and rounded once to each
    tensor's type; an expert of weight 0 leaves no trace. Tensors that are no real numbers must be equal in all.

    weights: one each, not negative, scaled here to add up to 1. Raises: UsageError where names, shapes or types differ, or
    weights are none of the kind.
    """
    if not states:
        raise UsageError("there is nothing to merge")
    shares = _shares(len(states), weights)
    _require_alike(states)
    merged: dict[str, Tensor] = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            merged[name] = first.clone()
            continue
        total = torch.zeros_like(first, dtype=torch.float64)
        for state, share in zip(states, shares, strict=True):
            if share:
                total += share * state[name].to(total.device, torch.float64)
        merged[name] = total.to(first.dtype)
    return merged


def merge(models: Sequence[Module], weights: Sequence[float] | None = None) -> Module:
    """A copy of the first model with the `weighted_average` of all their weights. Raises: UsageError as it does."""
    if not models:
        raise UsageError("there is nothing to merge")
    state = weighted_average([model.state_dict() for model in models], weights)
    merged = copy.deepcopy(models[0])
    merged.load_state_dict(state)
    return merged


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count:
        raise UsageError(f"{len(given)} weights for {count} models")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given):
        raise UsageError("weights to merge by are not negative, and not all 0")
    return [weight / sum(given) for weight in given]


def _require_alike(states: Sequence[Mapping[str, Tensor]]) -> None:
    first = states[0]
    for number, state in enumerate(states[1:], start=1):
        odd = first.keys() ^ state.keys()
        if odd:
            raise UsageError(f"models 0 and {number} cannot be merged: only one of them has '{min(odd)}'")
        for name, tensor in first.items():
            other = state[name]
            if tensor.shape != other.shape or tensor.dtype != other.dtype:
                shapes = f"{tuple(tensor.shape)} and {tuple(other.shape)}"
                raise UsageError(
                    f"models 0 and {number} cannot be merged: '{name}' is {shapes}: experts of one size can"
                )
            if not tensor.is_floating_point() and not torch.equal(tensor, other):
                raise UsageError(f"models 0 and {number} cannot be merged: '{name}' counts something, and differs")
