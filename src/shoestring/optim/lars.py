"""LARS: momentum SGD, with a learning rate for each layer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, NonNegative, Positive, method
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.trust_ratio import layer_norms, layers, trust_ratios


@method(
    "optim",
    name="lars",
    paper="Large Batch Training of Convolutional Networks, arXiv:1708.03888",
    claim="AlexNet in batches of 8 K and ResNet-50 in batches of 32 K without loss of accuracy",
    cost="momentum SGD's and two norms a layer per step; 4 bytes of state a parameter",
)
class LARS(StatefulOptimizer):
    """Momentum SGD whose every layer moves in proportion to its own norm.

    You, Gitman & Ginsburg (2017), arXiv:1708.03888, Algorithm 1. For a layer w with gradient g and momentum v:

        lambda = trust |w| / (|g| + weight_decay |w|)
        v <- momentum v + lr lambda (g + weight_decay w);   w <- w - v

    A layer is a parameter, a stack of experts too. lambda is 1 where the norm of w or the divisor is 0. Vectors (norm
    gains, biases) go without ratio and decay, as is the custom: lambda = 1 for them. trust: the paper's 0.001 wants an
    lr of ten and more, too much for those vectors, so the default moves a layer as far at an lr that suits them.
    weight_decay is inside the ratio and the momentum, as in the paper; it is not decoupled.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 0.2,
        momentum: Decay = 0.9,
        weight_decay: NonNegative = 5e-4,
        trust: Positive = 0.02,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: float32 momentum."""
        return sum(4 * parameter.numel() for parameter in parameters)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        decay, gradients, momenta = (
            group["weight_decay"],
            float_gradients(parameters),
            self.moments(parameters, "momentum"),
        )
        updates = list(gradients)
        chosen = layers(parameters)
        if chosen:
            weights, slopes = [parameters[place] for place in chosen], [gradients[place] for place in chosen]
            sizes = layer_norms(weights)
            ratios = trust_ratios(group["trust"] * sizes, layer_norms(slopes) + decay * sizes)
            moves = list(torch._foreach_mul(slopes, ratios))
            if decay:
                torch._foreach_addcmul_(moves, [each.float() for each in weights], ratios, value=decay)
            for place, move in zip(chosen, moves, strict=True):
                updates[place] = move
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, updates, alpha=group["lr"])
        torch._foreach_sub_(parameters, momenta)
