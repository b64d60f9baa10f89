"""Adam-mini: Adam with one second moment for each block of weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, Epsilon, NonNegative, Positive, method
from shoestring.optim.base import StatefulOptimizer
from shoestring.optim.row_blocks import RowBlocks, row_blocks


@method(
    "optim",
    name="adam_mini",
    paper="Adam-mini: Use Fewer Learning Rates To Gain More, arXiv:2406.16793",
    claim="on par with AdamW or better with 45 to 50 % less memory, on language models of 125 M to 7 B parameters",
    cost="4 bytes of state a parameter, and 4 a block; fewer operations than AdamW",
)
class AdamMini(StatefulOptimizer):
    """Adam whose second moment is one number for each block of weights.

    Zhang et al. (2024), arXiv:2406.16793. For the weights w_b of a block with gradient g_b, at step t = 1, 2, ...:

        m <- beta1 m + (1 - beta1) g_b;   v_b <- beta2 v_b + (1 - beta2) mean(g_b * g_b)
        w_b <- (1 - lr weight_decay) w_b - lr (m / (1 - beta1^t)) / (sqrt(v_b / (1 - beta2^t)) + epsilon)

    The blocks are the paper's for transformers, which follow the dense blocks of the Hessian: a query or key weight is
    divided by heads; a value, output or channel mixer's weight by output neurons, which are its rows; an embedding and
    a head by tokens, which are rows too; a vector is one block. Heads are known by a mark on the weight
    (`row_blocks`), which this library's attention sets and `mark_heads` sets for models of transformers; a query or key
    weight without it is divided by rows. Leading dimensions are a stack of matrices, as experts are kept. Differs from
    the authors' later code, which gives every element of a bias its own v. beta2 = 0.95 and weight_decay = 0.1 are the
    custom of language models. The state is float32 whatever the weights are.

    Raises: ValueError for a mark that does not fit its weight.
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
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        super().__init__(parameters, {**defaults, "weight_decay": weight_decay})

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: a float32 momentum each, and a number a block."""
        return sum(4 * (parameter.numel() + _blocks(parameter)) for parameter in parameters)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            row_blocks(parameter)  # refuses a mark that does not fit now, and not in the first step

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters, each for itself."""
        for parameter, momentum in zip(parameters, self.moments(parameters, "momentum"), strict=True):
            state = self.state[parameter]
            state["step"] = step = state.get("step", 0) + 1
            if "second" not in state:
                state["second"] = torch.zeros(_blocks(parameter), dtype=torch.float32, device=parameter.device)
            beta1, beta2 = group["beta1"], group["beta2"]
            gradient, blocks = parameter.grad, row_blocks(parameter)
            assert gradient is not None
            momentum.lerp_(gradient.float(), 1 - beta1)
            state["second"].lerp_(_mean_squares(gradient, blocks), 1 - beta2)
            roots = (state["second"] / (1 - beta2**step)).sqrt_().add_(group["epsilon"])
            # one rounding of a bfloat16 weight, not two
            weight = parameter if parameter.dtype == torch.float32 else parameter.float()
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.addcdiv_(momentum, _by_row(roots, parameter, blocks), value=-group["lr"] / (1 - beta1**step))
            if weight is not parameter:
                parameter.copy_(weight)


def _blocks(parameter: Tensor) -> int:
    """How many blocks there are in all."""
    stack = parameter.shape[:-2].numel() if parameter.ndim > 2 else 1
    return stack * sum(span // height for span, height in row_blocks(parameter))


def _mean_squares(gradient: Tensor, blocks: RowBlocks) -> Tensor:
    """mean(g_b * g_b) of every block, float32: the blocks of the first matrix, of the second ..."""
    matrices = gradient.reshape(-1, *gradient.shape[-2:]) if gradient.ndim > 1 else gradient.reshape(1, 1, -1)
    rows = torch.linalg.vector_norm(matrices, dim=-1, dtype=torch.float32).square_().div_(matrices.shape[-1])
    parts = rows.split([span for span, _ in blocks], dim=1)
    means = [part.unflatten(1, (-1, height)).mean(-1) for part, (_, height) in zip(parts, blocks, strict=True)]
    return torch.cat(means, dim=1).flatten()


def _by_row(values: Tensor, parameter: Tensor, blocks: RowBlocks) -> Tensor:
    """The number of each block beside each of its rows, in a shape that spreads over `parameter`."""
    if parameter.ndim < 2:
        return values
    counts = [span // height for span, height in blocks]
    parts = values.view(-1, sum(counts)).split(counts, dim=1)
    rows = [part.repeat_interleave(height, dim=1) for part, (_, height) in zip(parts, blocks, strict=True)]
    return torch.cat(rows, dim=1).view(*parameter.shape[:-1], 1)
