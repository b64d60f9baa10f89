"""What an optimiser may ask of the loss beyond its gradient, and an answer for any model that gives logits."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from shoestring.optim.uncompiled import eagerly

MOST_ROWS = 8192
"""Gradients of single labels, at most: their products with each other are this number squared."""


class Curvature(Protocol):
    """Derivatives of a mean loss at the present weights, over some of the batch of this step.

    An optimiser that needs them has `wants_curvature() -> bool`, asked before each step, and `observe(curvature)`,
    called between the gradients and `step()`. No method touches `.grad`. flops: operations spent so far through it.
    """

    flops: int

    def sampled_gradients(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], int]:
        """The gradient of the mean loss against labels drawn from the model's own predictions, and how many labels
        the mean is over; zeros for a parameter that the loss does not depend on."""
        ...

    def hessian_vector_products(self, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """H v for the Hessian H of the mean loss and the vector v in parts of the parameters' shapes, likewise."""
        ...

    def factors(self, parameters: Sequence[Tensor], rows: int) -> list[Tensor]:
        """R, of each parameter [n, ...]: R'R is the Gauss-Newton matrix of the mean loss, or has it for its mean.

        rows: n, gradients against labels that are drawn, each of every n-th place; 0: as many as there are places and labels, and
        R'R is exact.
        """
        ...


class LogitsCurvature:
    """The curvature of a model's mean cross-entropy, for a plain PyTorch loop:

        if sophia.wants_curvature():
            sophia.observe(LogitsCurvature(lambda: model(inputs), targets, seed=step))

    logits: computes them anew at each call, [..., V], gradients enabled. targets: [...] int64; a place of
    `ignore_index` counts in no mean. seed: of the drawn labels, which are the same for the same seed and logits.
    gradient_flops, product_flops: what a call of the first two methods costs, charged to `flops`; forward_flops: of the logits.

    For a second derivative compiled code is run as it was written, and attention in differentiable operations: neither
    torch.compile nor torch's flash kernels can be differentiated twice.
    """

    def __init__(
        self,
        logits: Callable[[], Tensor],
        targets: Tensor,
        *,
        seed: int,
        ignore_index: int = -100,
        gradient_flops: int = 0,
        product_flops: int = 0,
        forward_flops: int = 0,
    ) -> None:
        self.logits, self.targets, self.seed, self.ignore_index = logits, targets, seed, ignore_index
        self.gradient_flops, self.product_flops, self.flops = gradient_flops, product_flops, 0
        self.forward_flops = forward_flops

    @torch.enable_grad()
    def sampled_gradients(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], int]:
        """As `Curvature`. One forward pass serves the draw and the gradient."""
        logits, targets = self._flat()
        counts = targets != self.ignore_index
        labels = torch.where(counts, self._draw(logits.detach()), self.ignore_index)
        gradients = torch.autograd.grad(self._mean(logits, labels), parameters, materialize_grads=True)
        self.flops += self.gradient_flops
        return list(gradients), int(counts.sum())

    @torch.enable_grad()
    def hessian_vector_products(self, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """As `Curvature`, by differentiating g . v."""
        with eagerly(), sdpa_kernel(SDPBackend.MATH):
            products = hessian_vector_products(self._mean(*self._flat()), parameters, vectors)
        self.flops += self.product_flops
        return products

    @torch.enable_grad()
    def factors(self, parameters: Sequence[Tensor], rows: int) -> list[Tensor]:
        """As `Curvature`. One forward pass, and a backward pass for each row. Raises: ValueError for more than `MOST_ROWS`.

        p is the softmax of a place's logits, and the matrix of the mean over N places (1 / N) sum_t sum_v p_v grad(-log p_v)
        grad(-log p_v)'. With labels drawn from p, gradients of other places have no product in the mean: so places can be summed.
        """
        logits, targets = self._flat()
        places = (targets != self.ignore_index).nonzero().squeeze(1)
        chances = logits[places].log_softmax(-1)
        count = max(len(places), 1)
        if rows:
            drawn = -chances.gather(1, self._draw(logits.detach())[places, None])[:, 0] / count**0.5
            parts = [drawn[first::rows].sum() for first in range(rows)]
        else:
            if chances.numel() > MOST_ROWS:
                raise ValueError(
                    f"{len(places)} places of {chances.shape[-1]} labels are more than {MOST_ROWS} rows: draw labels instead"
                )
            weights = (chances.detach().exp() / count).sqrt()
            parts = list((-chances * weights).flatten().unbind())
        found = [torch.empty(len(parts), *p.shape, device=p.device) for p in parameters]
        for row, part in enumerate(parts):
            gradients = torch.autograd.grad(part, parameters, retain_graph=True, materialize_grads=True)
            for whole, gradient in zip(found, gradients, strict=True):
                whole[row] = gradient
        self.flops += self.forward_flops + len(parts) * (self.gradient_flops - self.forward_flops)
        return found

    def _flat(self) -> tuple[Tensor, Tensor]:
        """The logits [N, V] in float32 and the targets [N]."""
        logits = self.logits()
        return logits.reshape(-1, logits.shape[-1]).float(), self.targets.reshape(-1)

    def _draw(self, logits: Tensor) -> Tensor:
        generator = torch.Generator(logits.device).manual_seed(self.seed)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)

    def _mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss; 0 where no label counts. A sum divided: that has second derivatives on every device."""
        count = (labels != self.ignore_index).sum().clamp(min=1)
        return F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="sum") / count


def hessian_vector_products(loss: Tensor, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """H v for the Hessian H of `loss`, by differentiating g . v. loss: with a graph that can be differentiated twice."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    along = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors, strict=True)]).sum()
    if not along.requires_grad:  # a loss that is linear in all of them leaves nothing to differentiate
        return [torch.zeros_like(p) for p in parameters]
    return list(torch.autograd.grad(along, parameters, materialize_grads=True))
