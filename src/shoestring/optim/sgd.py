"""SGD: the gradient and nothing else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, NonNegative, Positive, method
from shoestring.optim.base import StatefulOptimizer, float_gradients


@method(
    "optim",
    name="sgd",
    paper="Small Batch Size Training for Language Models: When Vanilla SGD Works, and Why Gradient Accumulation Is "
    "Wasteful, arXiv:2507.07101",
    claim="at small batches language models train stably with SGD, without momentum and without any optimiser state",
    cost="one pass over the weights per step; no state without momentum",
)
class SGD(StatefulOptimizer):
    """The gradient, by default without momentum: an optimiser that keeps nothing.

    Marek, Lotfi, Somasundaram, Wilson & Goldblum (2025), arXiv:2507.07101. For a parameter w with gradient g:

        b <- momentum b + g  (b = g, and not kept, without momentum)
        w <- w - lr (b + weight_decay w)

    It is for small batches: the paper finds it near AdamW at a batch of one sequence and far behind at hundreds. lr:
    language models want it large; the authors search 0.05 to 5 at 30 M parameters and take 0.15 at 1.3 B. Without
    momentum, weight decay and an L2 penalty are the same; with it, the decay here is decoupled. The paper decays nothing.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 0.2,
        momentum: Decay = 0.0,
        weight_decay: NonNegative = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: none, without momentum."""
        return 0

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        updates = float_gradients(parameters)
        if group["momentum"]:
            buffers = self.moments(parameters, "momentum")
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            updates = buffers
        if group["weight_decay"]:
            updates = list(torch._foreach_add(updates, parameters, alpha=group["weight_decay"]))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
