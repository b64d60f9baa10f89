"""GELU: a feed-forward layer with two matrices and a smooth activation."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.method import method


@method(
    "model",
    kind="channel mixer",
    name="gelu",
    paper="Gaussian Error Linear Units (GELUs), arXiv:1606.08415",
    claim="better than ReLU and ELU on the vision, language and speech tasks of the paper",
    cost="two matrices of width x hidden",
)
class GELU(nn.Module):
    """A feed-forward layer whose activation weighs each feature by the normal distribution function of its value.

    y = W_out gelu(W_in x), gelu(z) = z Phi(z). x: [..., width] -> [..., width].

    approximate: 'none' for Phi itself, 'tanh' for z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))), as GPT-2 has it.
    bias: whether both layers add a learnt vector.
    """

    expansion = 4.0

    def __init__(
        self, width: int, hidden: int, *, approximate: Literal["none", "tanh"] = "none", bias: bool = False
    ) -> None:
        super().__init__()
        self.approximate = approximate
        self.input = nn.Linear(width, hidden, bias=bias)
        self.output = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.input(x), approximate=self.approximate))

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        inside = inputs or (shape.backward and cost.trains(self.input))
        first = cost.linear(self.input, shape.tokens, shape.backward, inputs)
        return first + cost.linear(self.output, shape.tokens, shape.backward, inside)
