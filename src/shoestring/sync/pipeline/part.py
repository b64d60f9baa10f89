"""One part of the model on the process that holds it: its passes, its gradient, its step."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from shoestring.errors import UsageError

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


class ModelPart:
    """A module and its inner optimiser. Every micro-batch passes through it once each way in a step.

    Gradients are added in the order of the micro-batches whatever order they come in, so that sums have one rounding.

    squared_norm: sum of the squares of the gradient that the last step applied, before clipping.
    lr_scale: a factor on all learning rates.
    """

    def __init__(self, module: nn.Module, optimizer: OptimizerFactory) -> None:
        self.module, self.optimizer = module, optimizer(module)
        self.squared_norm, self.lr_scale = 0.0, 1.0
        self.finished = 0
        self._measured = 0.0
        self._passed: dict[int, tuple[Tensor, Tensor]] = {}
        self._waiting: dict[int, Tensor] = {}

    def begin(self) -> None:
        """Forget what an earlier attempt at a step left."""
        self.optimizer.zero_grad(set_to_none=True)
        self._passed.clear()
        self._waiting.clear()
        self.finished = 0

    def forward(self, micro: int, inputs: Tensor, *more: Tensor) -> Tensor:
        """What the module makes of the micro-batch, cut off from the graph, which is kept for `backward`."""
        entering = inputs.detach()
        if entering.is_floating_point():
            entering.requires_grad_()
        leaving = self.module(entering, *more)
        self._passed[micro] = (entering, leaving)
        return leaving.detach()

    def backward(self, micro: int, gradient: Tensor) -> Iterator[tuple[int, Tensor | None]]:
        """Take the gradient of what left; yields, for all micro-batches whose turn it now is, the gradient of what entered
        (None where that was token ids)."""
        self._waiting[micro] = gradient
        while self.finished in self._waiting:
            turn = self.finished
            entering, leaving = self._passed.pop(turn)
            leaving.backward(self._waiting.pop(turn))
            self.finished += 1
            yield turn, entering.grad

    def measure(self) -> float:
        """Sum of the squares of the gradient as it is now; `apply` keeps it as `squared_norm`."""
        gradients = self._gradients()
        self._measured = float(nn.utils.get_total_norm(gradients)) ** 2 if gradients else 0.0
        return self._measured

    def apply(self, gradient_factor: float, lr_factor: float) -> None:
        """Step the optimiser on the gradient times one factor, with its learning rates times the other and `lr_scale`."""
        self.squared_norm = self._measured
        gradients = self._gradients()
        if gradient_factor != 1 and gradients:
            torch._foreach_mul_(gradients, gradient_factor)
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * lr_factor * self.lr_scale
        self.optimizer.step()
        self.begin()

    def absolute_sum(self) -> float:
        """The 1-norm of the gradient as it is now."""
        gradients = self._gradients()
        return float(nn.utils.get_total_norm(gradients, 1.0)) if gradients else 0.0

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.module.parameters() if p.grad is not None]


def check_parts(modules: Sequence[nn.Module]) -> None:
    """Raises: UsageError where there is no stage, or two parts share a parameter (as tied embeddings do)."""
    if len(modules) < 3:
        raise UsageError("a pipeline needs at least one stage")
    seen: dict[int, int] = {}
    for number, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            if seen.setdefault(id(parameter), number) != number:
                raise UsageError(
                    f"parts {seen[id(parameter)]} and {number} share '{name}': untie the embedding and the head"
                )
