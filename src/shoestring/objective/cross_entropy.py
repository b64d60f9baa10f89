"""Cross-entropy of the output layer: hidden states, the output matrix and targets in, the mean loss out.

Two ways to the same number. `plain` leaves the logits [N, V] to autograd. `fused` works on blocks of rows and computes
the gradient while the block's logits are at hand, so that no more than one block of logits is ever in memory and each
is read and written once (the idea of Liger Kernel, arXiv:2410.10989).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.contract.batch import IGNORED

LOGITS, ROWS = 3 << 22, 1024
"""Of a block, at most."""


class CrossEntropy(Protocol):
    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor: ...


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats over the targets that count. hidden: [..., D]. weight: [V, D]. targets: [...] int64."""
    logits = F.linear(hidden, weight).flatten(0, -2)
    return F.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORED)


Block = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""The summed, scaled loss of a block of logits [n, V], and its gradient in their dtype, from them, targets [n] and a scale."""


def _in_place(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A `Block` that has one float32 copy of the logits, which becomes the gradient."""
    wide = logits.float()
    weights = (targets != IGNORED) * scale
    index = targets.clamp(min=0)[:, None]
    normaliser = wide.logsumexp(-1, keepdim=True)
    losses = (normaliser - wide.gather(1, index)).squeeze(1)
    wide.sub_(normaliser).exp_()
    wide.scatter_add_(1, index, wide.new_full((), -1.0).expand(index.shape))
    return (losses * weights).sum(), wide.mul_(weights[:, None]).to(logits.dtype)


def _fusible(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A `Block` of operations that a compiler makes one loop of."""
    wide = logits.float()
    weights = (targets != IGNORED) * scale
    index = targets.clamp(min=0)[:, None]
    hot = torch.arange(logits.shape[1], device=logits.device)[None] == index
    normaliser = wide.logsumexp(-1, keepdim=True)
    losses = (normaliser - wide.gather(1, index)).squeeze(1)
    gradient = ((wide - normaliser).exp() - hot.float()) * weights[:, None]
    return (losses * weights).sum(), gradient.to(logits.dtype)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, block: Block) -> Tensor:
        device = hidden.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        flat, goals = hidden.reshape(-1, hidden.shape[-1]).to(narrow), targets.reshape(-1)
        matrix = weight.to(narrow)
        scale = 1.0 / (goals != IGNORED).sum().clamp(min=1).float()
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.empty_like(flat)
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(device, enabled=False):
            for start in range(0, flat.shape[0], rows):
                part = slice(start, start + rows)
                loss, gradient = block(flat[part] @ matrix.t(), goals[part], scale)
                total += loss
                torch.mm(gradient, matrix, out=hidden_gradient[part])
                if weight_gradient is not None:
                    weight_gradient += gradient.t() @ flat[part]
        ctx.save_for_backward(hidden_gradient.view(hidden.shape).to(hidden.dtype), weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        weights = None if weight_gradient is None else weight_gradient * outer
        return hidden_gradient * outer, weights, None, None, None


class Fused:
    """`plain` in blocks of rows, its gradient worked out in the forward pass. compiled: fuse a block's arithmetic
    with torch.compile. Under `torch.no_grad` the gradient is worked out all the same: evaluate with `plain`.

    rows: of a block; None: as many as have `LOGITS` logits, at most `ROWS`.
    """

    def __init__(self, rows: int | None = None, compiled: bool = False) -> None:
        self.rows = rows
        self._block: Block = torch.compile(_fusible, dynamic=False) if compiled else _in_place

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return _Fused.apply(hidden, weight, targets, self.rows_of(len(weight)), self._block)

    def rows_of(self, vocabulary: int) -> int:
        """Of a block."""
        return self.rows or min(ROWS, max(1, LOGITS // vocabulary))
