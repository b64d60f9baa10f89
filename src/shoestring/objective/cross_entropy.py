"""Cross-entropy of the output layer: hidden states, the output matrix and targets in, the mean loss out.

Two ways to the same number. `plain` leaves the logits [N, V] to autograd. `fused` works on blocks of rows and computes
the gradient while the block's logits are at hand, so that no more than one block of logits is ever in memory and each
is read and written once (the idea of Liger Kernel, arXiv:2410.10989).
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.contract.batch import IGNORED


class CrossEntropy(Protocol):
    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor: ...


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats over the targets that count. hidden: [..., D]. weight: [V, D]. targets: [...] int64."""
    logits = F.linear(hidden, weight).flatten(0, -2)
    return F.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORED)


def _block(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Summed, scaled loss of a block of logits [n, V] and its gradient, in the logits' dtype."""
    wide = logits.float()
    counts = targets != IGNORED
    index = targets.clamp(min=0)[:, None]
    normaliser = wide.logsumexp(-1, keepdim=True)
    losses = (normaliser - wide.gather(1, index)).squeeze(1)
    weights = counts * scale
    hot = torch.arange(logits.shape[1], device=logits.device)[None] == index
    gradient = ((wide - normaliser).exp() - hot.float()) * weights[:, None]
    return (losses * weights).sum(), gradient.to(logits.dtype)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, block: Any) -> Tensor:
        device = hidden.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        flat, goals = hidden.reshape(-1, hidden.shape[-1]).to(narrow), targets.reshape(-1)
        matrix = weight.to(narrow)
        scale = 1.0 / (goals != IGNORED).sum().clamp(min=1).float()
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.empty_like(flat)
        weight_gradient = torch.zeros_like(weight)
        with torch.autocast(device, enabled=False):
            for start in range(0, flat.shape[0], rows):
                part = slice(start, start + rows)
                loss, gradient = block(flat[part] @ matrix.t(), goals[part], scale)
                total += loss
                torch.mm(gradient, matrix, out=hidden_gradient[part])
                weight_gradient += gradient.t() @ flat[part]
        ctx.save_for_backward(hidden_gradient.view(hidden.shape).to(hidden.dtype), weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outer, weight_gradient * outer, None, None, None


class Fused:
    """`plain` in blocks of `rows` rows, its gradient worked out in the forward pass. compiled: fuse a block's arithmetic
    with torch.compile. Under `torch.no_grad` the gradient is worked out all the same: evaluate with `plain`."""

    def __init__(self, rows: int = 1024, compiled: bool = False) -> None:
        self.rows = rows
        self._block = torch.compile(_block, dynamic=False) if compiled else _block

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return _Fused.apply(hidden, weight, targets, self.rows, self._block)
