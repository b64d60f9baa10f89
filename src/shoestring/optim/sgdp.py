"""SGDP: momentum SGD that does not lengthen weights whose length means nothing."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, Epsilon, Fraction, NonNegative, Positive, method
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.projection import project_and_decay


@method(
    "optim",
    name="sgdp",
    paper="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, arXiv:2006.08217",
    claim="steps on normalised weights do not shrink too early: uniform gains on 13 benchmarks, of vision, language "
    "and audio",
    cost="momentum SGD's and six passes over the weights per step; 4 bytes of state a parameter",
)
class SGDP(StatefulOptimizer):
    """Momentum SGD whose update loses its radial component wherever the weight is scale-invariant.

    Heo et al. (2021), arXiv:2006.08217, Algorithm 1. For a weight w with gradient g and momentum b:

        b <- momentum b + g;   p = g + momentum b if nesterov else b
        q = p - (p . w) w / |w|^2   if |cos(w, g)| < delta / sqrt(dim(w)),   else p
        w <- w - lr (q + weight_decay k w / (1 - momentum)),   k = decay_ratio if projected, else 1

    tested and projected by output channel (the first dimension), and if that fails over the whole layer: see
    `shoestring.optim.projection`. Weights of one dimension are never projected. The divisor 1 - momentum, from the
    authors' code, makes the decay weigh as much as an L2 penalty that went through the momentum. Differs from that
    code: there the projection without Nesterov also writes into the momentum; here, as in the paper, b is left alone.

    delta: the cosine between weight and gradient, times the root of their size, below which a weight counts as
    scale-invariant.
    decay_ratio: factor on the weight decay of a projected weight.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 0.05,
        momentum: Decay = 0.9,
        nesterov: bool = True,
        weight_decay: NonNegative = 1e-4,
        delta: NonNegative = 0.1,
        decay_ratio: Fraction = 0.1,
        epsilon: Epsilon = 1e-8,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        defaults |= {"delta": delta, "decay_ratio": decay_ratio, "epsilon": epsilon}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: float32 momentum."""
        return sum(4 * parameter.numel() for parameter in parameters)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        gradients, momenta = float_gradients(parameters), self.moments(parameters, "momentum")
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        if group["nesterov"]:
            updates = list(torch._foreach_add(gradients, momenta, alpha=group["momentum"]))
        else:
            updates = [momentum.clone() for momentum in momenta]
        options = {key: group[key] for key in ("delta", "epsilon", "decay_ratio")}
        decay = group["weight_decay"] / (1 - group["momentum"])
        for parameter, gradient, update in zip(parameters, gradients, updates, strict=True):
            project_and_decay(parameter, gradient, update, weight_decay=decay, **options)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
