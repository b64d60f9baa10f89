"""Experts weighed the same at every place of every text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "decode",
    kind="expert weights",
    name="fixed",
    paper="Branch-Train-Merge, arXiv:2208.03306",
    claim="a plain mean of the experts' probabilities: the control for every way to choose among them",
    cost="every expert whose weight is not 0 reads every token",
)
class FixedExpertWeights:
    """p(D = j) = w_j / sum w. weights: one for each expert, not negative. Raises: UsageError for others."""

    needs_likelihood = False
    every = 1 << 30

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or min(weights) < 0 or sum(weights) <= 0:
            raise UsageError("weights of experts are not negative, and not all 0")
        given = torch.tensor(weights, dtype=torch.float64)
        self.weights = given / given.sum()

    def __call__(self, tokens: Tensor, likelihood: Tensor | None = None) -> Tensor:
        return self.weights.expand(*tokens.shape, -1)
