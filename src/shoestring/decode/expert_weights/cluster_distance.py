"""Experts weighed by how near the text so far is to the cluster each was trained on."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shoestring.decode.expert_weights.base import keep_top, spread, updates
from shoestring.method import Count, Positive, Whole, method

Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(tokens [B, T], ends [N], ascending) -> [B, N, E], squared distances of the first `end` tokens of each row from the centre
of each expert's cluster."""


@method(
    "decode",
    kind="expert weights",
    name="cluster_distance",
    paper="Scaling Expert Language Models with Unsupervised Domain Discovery, arXiv:2303.14177",
    claim="a few experts near the context do nearly as well as all, for the inference cost of those few",
    cost="a text vector every so many tokens, and the experts whose weight is not 0",
)
class ClusterDistance:
    """p(D = j | x_<=t) ~ top-k[ exp(-|h_t - c_j|^2 / T) ], normalised.

    Gururangan et al. (2023), "Scaling Expert Language Models with Unsupervised Domain Discovery", arXiv:2303.14177: h_t is
    the vector of the text so far, c_j the centre of the cluster of expert j, T a temperature (0.1 as their code is
    released), k how many experts are consulted. The softmax is over all experts, then all but k are dropped and the rest
    scaled up. Their code works h_t out at every token, and squares a distance that is squared already; here it is the
    formula, every `every` tokens.

    distances: of texts from the centres. top_k: 0 = all experts.

    temperature: T; a lower one gives the nearest expert more weight.
    """

    needs_likelihood = False

    def __init__(
        self,
        distances: Distances,
        *,
        temperature: Positive = 0.1,
        top_k: Whole = 0,
        every: Count = 32,
    ) -> None:
        self.distances, self.temperature, self.top_k, self.every = distances, temperature, top_k, every

    def __call__(self, tokens: Tensor, likelihood: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        ends = updates(length, self.every) + 1  # the token at the place of an update is read already
        found = torch.from_numpy(self.distances(tokens.cpu().numpy(), ends.numpy()))
        weights = (-found.double() / self.temperature).softmax(dim=-1)
        return spread(keep_top(weights, self.top_k), length, self.every)
