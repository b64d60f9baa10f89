"""AdamP: Adam that does not lengthen weights whose length means nothing."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, Epsilon, Fraction, NonNegative, Positive, method
from shoestring.optim.adam_direction import adam_direction
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.projection import project_and_decay


@method(
    "optim",
    name="adamp",
    paper="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, arXiv:2006.08217",
    claim="steps on normalised weights do not shrink too early: uniform gains on 13 benchmarks, of vision, language "
    "and audio",
    cost="AdamW's and six passes over the weights per step; 8 bytes of state a parameter",
)
class AdamP(StatefulOptimizer):
    """Adam whose update loses its radial component wherever the weight is scale-invariant.

    Heo et al. (2021), arXiv:2006.08217, Algorithm 2. For a weight w with gradient g and Adam's direction p
    (`shoestring.optim.adam_direction`, whose epsilon stands outside the root):

        q = p - (p . w) w / |w|^2   if |cos(w, g)| < delta / sqrt(dim(w)),   else p
        w <- w - lr (q + weight_decay k w),   k = decay_ratio if projected, else 1

    tested and projected by output channel (the first dimension), and if that fails over the whole layer: see
    `shoestring.optim.projection`. Weights of one dimension are never projected. weight_decay is decoupled; a projected
    weight has less need of it, as its norm no longer grows with the momentum. delta and decay_ratio are the paper's.

    delta: the cosine between weight and gradient, times the root of their size, below which a weight counts as
    scale-invariant.
    decay_ratio: factor on the weight decay of a projected weight.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 3e-3,
        beta1: Decay = 0.9,
        beta2: Decay = 0.95,
        epsilon: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.1,
        delta: NonNegative = 0.1,
        decay_ratio: Fraction = 0.1,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        defaults |= {"weight_decay": weight_decay, "delta": delta, "decay_ratio": decay_ratio}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: two float32 moments."""
        return sum(8 * parameter.numel() for parameter in parameters)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        updates = adam_direction(self, parameters, group)
        options = {key: group[key] for key in ("delta", "epsilon", "weight_decay", "decay_ratio")}
        for parameter, gradient, update in zip(parameters, float_gradients(parameters), updates, strict=True):
            project_and_decay(parameter, gradient, update, **options)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
