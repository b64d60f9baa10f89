"""NormFormer's feed-forward layer: a norm between its matrices."""

from torch import Tensor
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import Positive, method
from shoestring.model.layernorm import LayerNorm
from shoestring.model.two_matrices import TwoMatrices


@method(
    "model",
    kind="channel mixer",
    name="normformer",
    paper="NormFormer: Improved Transformer Pretraining with Extra Normalization, arXiv:2110.09456",
    claim="with its norm after attention and scaled heads, the loss of a model 22 % to 43 % sooner than pre-norm",
    cost="two matrices of width x hidden, and a norm over the hidden features",
)
class NormFormerFeedForward(TwoMatrices):
    """A feed-forward layer whose hidden features are normed after the activation.

    Sam Shleifer, Jason Weston and Myle Ott, 2021, arXiv:2110.09456.

    y = W_out LayerNorm(gelu(W_in x)). x: [..., width] -> [..., width].

    Different from the paper: no biases in the matrices.

    epsilon: of the norm.
    """

    def __init__(self, width: int, hidden: int, *, epsilon: Positive = 1e-5) -> None:
        super().__init__(width, hidden)
        self.norm = LayerNorm(hidden, epsilon=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(F.gelu(self.input(x))))

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: the hidden features, and the width that it reads and writes."""
        width, hidden = super().axes()
        return (width, Axis("hidden", None, hidden.size, (*hidden.slices, Slice("norm.weight", 0))))

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        inside = inputs or (shape.backward and (cost.trains(self.input) or cost.trains(self.norm)))
        first = cost.linear(self.input, shape.tokens, shape.backward, inputs)
        return first + cost.linear(self.output, shape.tokens, shape.backward, inside)
