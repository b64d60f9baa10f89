"""Lion: the sign of an interpolated momentum."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, NonNegative, Positive, method
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.decoupled import decoupled_step


@method(
    "optim",
    name="lion",
    paper="Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675",
    claim="on language modelling similar to Adam or better, with the momentum as its only state",
    cost="5 passes over the weights and 4 bytes of state a parameter per step",
)
class Lion(StatefulOptimizer):
    """Every weight moves by lr, one way or the other: the sign of momentum and gradient.

    Chen et al. (2023), arXiv:2302.06675, Algorithm 2. For a parameter w with gradient g and momentum m:

        c = beta1 m + (1 - beta1) g
        w <- w - lr (sign(c) + weight_decay w)
        m <- beta2 m + (1 - beta2) g

    The search found beta1 = 0.9, beta2 = 0.99; the defaults here are the pair the authors suggest for stability. lr:
    the paper takes 3 to 10 times less than for AdamW, and as many times the weight decay, so that their product stays;
    the defaults here, for small models, keep that of this library's AdamW. `lion_kappa` monitors what decay bounds.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})
    elementwise = True

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 2e-3,
        beta1: Decay = 0.95,
        beta2: Decay = 0.98,
        weight_decay: NonNegative = 0.15,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay})

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: float32 momentum."""
        return sum(4 * parameter.numel() for parameter in parameters)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        gradients, momenta = float_gradients(parameters), self.moments(parameters, "momentum")
        updates = list(torch._foreach_lerp(momenta, gradients, 1 - group["beta1"]))
        torch._foreach_sign_(updates)
        decoupled_step(parameters, updates, lr=group["lr"], weight_decay=group["weight_decay"])
        torch._foreach_lerp_(momenta, gradients, 1 - group["beta2"])
