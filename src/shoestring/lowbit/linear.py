"""A linear layer that computes with quantised weights and trains the latent ones."""

from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.lowbit.activations import Activations, fake_tokens
from shoestring.lowbit.format import Format, Quantised


class LowBitLinear(nn.Linear):
    """y = x~ W~^T + b, with W~ the latent `weight` in a number format, and x~ the input, rounded too where `activations` says.

    Gradients pass straight through to `weight`, which optimisers, checkpoints and everything else see as that of any
    `nn.Linear`. active: False computes with the latent weight and the input as they are, in full precision.

    Under autocast W~ is rounded to its type before the product, as any weight is: the codes are exact, a scale is off by up
    to 2^-9 in bfloat16. A float32 pass computes with the very numbers of `quantise`.
    """

    format: Format
    activations: Activations
    active: bool

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        format: Format,
        activations: Activations = "none",
        **more: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, **more)
        format.groups(out_features, in_features)
        self.format, self.activations, self.active = format, activations, True

    @classmethod
    def of(cls, linear: nn.Linear, format: Format, activations: Activations = "none") -> Self:
        """A layer with everything that `linear` has, parameters, hooks and marks: the same objects, not copies.

        Raises: UsageError where its weight does not divide into the blocks of `format`.
        """
        format.groups(linear.out_features, linear.in_features)
        layer = cls.__new__(cls)
        layer.__dict__.update(linear.__dict__)
        layer.format, layer.activations, layer.active = format, activations, True
        return layer

    def quantise(self) -> Quantised:
        """The weight as inference uses it. Raises: ShoestringError for a weight that is not finite."""
        return self.format.quantise(self.weight)

    def computed_weight(self) -> Tensor:
        """The numbers that inference multiplies by, in the type of `weight`."""
        return self.quantise().dequantise().to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return F.linear(x, self.weight, self.bias)
        if self.activations == "int8":
            x = fake_tokens(x)
        return F.linear(x, self.format.fake(self.weight), self.bias)

    def extra_repr(self) -> str:
        rounded = "" if self.activations == "none" else f", activations={self.activations}"
        return f"{super().extra_repr()}, format={self.format}{rounded}"
