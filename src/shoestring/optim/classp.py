"""CLASSP: weights that learnt much learn less, and small gradients move nothing."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.method import Epsilon, NonNegative, Positive, method
from shoestring.optim.base import StatefulOptimizer, float_gradients

Power = Annotated[float, Interval(gt=0, le=16)]


@method(
    "optim",
    name="classp",
    paper="CLASSP: a Biologically-Inspired Approach to Continual Learning through Adjustment Suppression and Sparsity Promotion, "
    "arXiv:2405.09637",
    claim="better accuracy and less memory than Elastic Weight Consolidation in sequences of vision and sentiment tasks",
    cost="five passes over the weights and 4 bytes of state a parameter per step",
)
class CLASSP(StatefulOptimizer):
    """AdaGrad of any power, for the gradients above a threshold alone: what was learnt before is moved little.

    Ludwig (2024), arXiv:2405.09637. For a parameter w with gradient g, element by element where g² > threshold:

        s <- s + |g|^power
        w <- w - lr g / (s + epsilon)^(1 / power)

    and nothing elsewhere. power = 2 and threshold = 0 are AdaGrad. The paper's formula has in s the gradients before this one
    alone, by which a first step would have no bound; its author's code has this one too, as AdaGrad has, and so here.

    power: p. Large ones heed the largest gradients that there were.
    threshold: of the square of a gradient's element, after the clipping of the whole.
    weight_decay: decoupled, of the elements that move; the paper has none.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 0.01,
        power: Power = 2.0,
        threshold: NonNegative = 1e-9,
        epsilon: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
    ) -> None:
        options = {"lr": lr, "power": power, "threshold": threshold, "epsilon": epsilon, "weight_decay": weight_decay}
        super().__init__(parameters, options)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes."""
        return sum(4 * parameter.numel() for parameter in parameters)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        power = group["power"]
        sums = self.moments(parameters, "sum")
        for parameter, gradient, total in zip(parameters, float_gradients(parameters), sums, strict=True):
            moves = gradient.square() > group["threshold"]
            total.add_(torch.where(moves, gradient.abs().pow(power), 0.0))
            update = gradient / (total + group["epsilon"]).pow(1 / power)
            if group["weight_decay"]:
                update = update + group["weight_decay"] * parameter.float()
            parameter.add_(torch.where(moves, update, 0.0), alpha=-group["lr"])
