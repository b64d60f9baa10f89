"""LAMB: Adam's direction, as long as the layer is large."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, Epsilon, NonNegative, Positive, method
from shoestring.optim.adam_direction import adam_direction
from shoestring.optim.base import StatefulOptimizer
from shoestring.optim.trust_ratio import layer_norms, layers, trust_ratios


@method(
    "optim",
    name="lamb",
    paper="Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, arXiv:1904.00962",
    claim="BERT in batches of 32,868 without any degradation, with very little tuning",
    cost="AdamW's and two norms a layer per step; 8 bytes of state a parameter",
)
class LAMB(StatefulOptimizer):
    """Adam whose every layer moves by lr times its own norm.

    You et al. (2020), arXiv:1904.00962, Algorithm 2. For a layer w with gradient g at step t = 1, 2, ...:

        m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
        r = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
        w <- w - lr phi(|w|) / |r + weight_decay w| (r + weight_decay w),   phi(z) = min(max(z, lower), upper)

    A layer is a parameter, a stack of experts too. The ratio is 1 where it has a zero above or below. Vectors (norm
    gains, biases) go without ratio and decay, as in the authors' code: they move by lr r. lower, upper: of phi, which by
    default is the identity. lr: the share of its norm by which a layer moves in a step.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 0.02,
        beta1: Decay = 0.9,
        beta2: Decay = 0.95,
        epsilon: Epsilon = 1e-6,
        weight_decay: NonNegative = 0.01,
        lower: NonNegative = 0.0,
        upper: Positive | None = None,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        defaults |= {"weight_decay": weight_decay, "lower": lower, "upper": upper}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: two float32 moments."""
        return sum(8 * parameter.numel() for parameter in parameters)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        updates = adam_direction(self, parameters, group)
        chosen = layers(parameters)
        if chosen:
            weights, moves = [parameters[place] for place in chosen], [updates[place] for place in chosen]
            if group["weight_decay"]:
                torch._foreach_add_(moves, weights, alpha=group["weight_decay"])
            sizes = layer_norms(weights).clamp(group["lower"], group["upper"])
            torch._foreach_mul_(moves, trust_ratios(sizes, layer_norms(moves)))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
