"""A linear layer with a low-rank matrix beside its own."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.role import ADAPTER
from shoestring.tune.adapted import Adapted, product


class LowRankLinear(Adapted):
    """y = base(x) + scale (x A^T) B^T, with A [rank, in] and B [out, rank] trained, and the base as it is."""

    roles: ClassVar = {"down": ADAPTER, "up": ADAPTER}

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__(base)
        self.scale = scale
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def adapt(self, x: Tensor, plain: Tensor) -> Tensor:
        return plain + self.added(x)

    def added(self, x: Tensor) -> Tensor:
        """scale (x A^T) B^T."""
        return F.linear(F.linear(x, self.down), self.up) * self.scale

    def change(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + scale B A."""
        return weight + self.scale * self.up.float() @ self.down.float(), bias

    def added_flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        rank, trained = self.down.shape[0], self.trained
        down = product(trained, backward, inputs, tokens * self.in_features * rank)
        return down + product(trained, backward, trained or inputs, tokens * rank * self.out_features)

    def extra_repr(self) -> str:
        return f"rank={self.down.shape[0]}, scale={self.scale:g}"
