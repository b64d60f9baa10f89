"""A linear layer with packed weights that reads its inputs through a transform."""

from typing import Any, ClassVar

from torch import Tensor, nn

from shoestring.quantise.kronecker import Kronecker


class TransformedLinear(nn.Module):
    """y = W' (P^T x) + b, with P = A (x) B. inner: the layer of W' = W P^-T, packed. x: [..., in] -> [..., out]."""

    left: Tensor
    right: Tensor
    constant: ClassVar[bool] = True
    """As `PackedLinear.constant`."""

    def __init__(self, inner: Any, pair: Kronecker) -> None:
        super().__init__()
        self.inner = inner
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.register_buffer("left", pair.left)
        self.register_buffer("right", pair.right)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(Kronecker(self.left, self.right).times(x))
        return found

    @property
    def bias(self) -> Tensor | None:
        """[out]: of the inner layer."""
        found: Tensor | None = self.inner.bias
        return found

    def computed_weight(self) -> Tensor:
        """float32 [out, in]: W = W' P^T, by which x is multiplied in all."""
        return Kronecker(self.left, self.right).transposed.times(self.inner.computed_weight())

    def flops(self, tokens: int, backward: bool = False, inputs: bool = True) -> int:
        """Operations on so many tokens, the transform's among them. The convention is in `contract.cost`."""
        own = 2 * tokens * self.in_features * (len(self.left) + len(self.right) + self.out_features)
        return own * (1 + (backward and inputs))
