"""The outer optimiser: one step of the global weights from an averaged pseudo-gradient."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.sync.inner import is_orthogonal


@dataclass(frozen=True)
class OuterSGD:
    """SGD with Nesterov momentum on the pseudo-gradient Delta = theta_global - theta_local, averaged over the workers:

        u <- mu u + Delta;   theta <- theta - lr (Delta + mu u)        (without nesterov: theta - lr u)

    which is `torch.optim.SGD` bit for bit; u starts as the first Delta. Douillard et al. (2023), DiLoCo,
    arXiv:2311.08105: lr 0.7, momentum 0.9 with AdamW inside (the defaults, `DILOCO`). Therien et al. (2025), MuLoCo,
    arXiv:2505.23725: lr 0.7, momentum 0.6 with Muon inside, K = 1 (`MULOCO`); the paper keeps lr within u, the same for a
    constant lr. Charles et al. (2025), Scaling Laws for DiLoCo, arXiv:2503.09799, tune lr by the number of workers
    and not by the size of the model. lr 1, momentum 0 is local SGD with plain averaging.

    Raises: ValueError for a lr that is not positive or a momentum outside [0, 1).
    """

    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")

    @torch.no_grad()
    def step(self, weights: Mapping[str, Tensor], momenta: dict[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Move the `weights` named in `gradients`, in place. momenta: u by name, which this fills and moves."""
        for name, gradient in gradients.items():
            direction = gradient
            if self.momentum:
                if name in momenta:
                    momenta[name].mul_(self.momentum).add_(gradient)
                else:
                    momenta[name] = gradient.clone()
                direction = gradient.add(momenta[name], alpha=self.momentum) if self.nesterov else momenta[name]
            weights[name].add_(direction, alpha=-self.lr)


DILOCO = OuterSGD()
"""With AdamW inside."""

MULOCO = OuterSGD(momentum=0.6)
"""With Muon inside."""


def outer_for(inner: torch.optim.Optimizer | None) -> OuterSGD:
    """The published settings for this inner optimiser: `MULOCO` where it, or a part of it, moves matrices by polar factors."""
    return MULOCO if is_orthogonal(inner) else DILOCO
