"""A linear layer with a low-rank matrix beside its own."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.role import ADAPTER


class LowRankLinear(nn.Module):
    """y = base(x) + scale (x A^T) B^T, with A [rank, in] and B [out, rank] trained, and the base as it is.

    base: any layer with `in_features` and `out_features`: plain, quantised in training, or packed.
    """

    roles: ClassVar = {"down": ADAPTER, "up": ADAPTER}

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        sized: Any = base
        self.in_features: int = sized.in_features
        self.out_features: int = sized.out_features

    @property
    def weight(self) -> Tensor:
        """The base's own."""
        found: Tensor = self.base.weight  # type: ignore[assignment]
        return found

    @torch.no_grad()
    def computed_weight(self) -> Tensor:
        """W + scale B A, in the type of W, where W is what the base computes with."""
        own: Any = getattr(self.base, "computed_weight", None)
        weight: Tensor = self.weight if own is None else own()
        return weight + (self.scale * self.up.float() @ self.down.float()).to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The base's own."""
        found: Tensor | None = getattr(self.base, "bias", None)
        return found

    def forward(self, x: Tensor) -> Tensor:
        added = F.linear(F.linear(x, self.down), self.up)
        mixed: Tensor = self.base(x) + added * self.scale
        return mixed

    def flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        """Operations on `tokens` vectors, as `contract.cost.linear` counts them."""
        rank = self.down.shape[0]
        base: Any = self.base
        trained = backward and any(parameter.requires_grad for parameter in base.parameters())
        whole = (1 + trained + (backward and inputs)) * 2 * tokens * self.in_features * self.out_features
        down = (1 + backward + (backward and inputs)) * 2 * tokens * self.in_features * rank
        up = (3 if backward else 1) * 2 * tokens * rank * self.out_features
        return whole + down + up

    def merged(self) -> nn.Linear:
        """A plain layer that computes the same."""
        made = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        made.weight = nn.Parameter(self.computed_weight())
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias.detach())
        return made

    def extra_repr(self) -> str:
        return f"rank={self.down.shape[0]}, scale={self.scale:g}"
