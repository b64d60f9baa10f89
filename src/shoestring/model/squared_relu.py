"""Squared ReLU: a feed-forward layer with two matrices and a sparse activation."""

from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import method


@method(
    "model",
    kind="channel mixer",
    name="squared_relu",
    paper="Primer: Searching for Efficient Transformers for Language Modeling, arXiv:2109.08668",
    claim="the simplest of Primer's two changes, which together reach a Transformer's quality in a third to a quarter "
    "of the compute",
    cost="two matrices of width x hidden",
)
class SquaredReLU(nn.Module):
    """A feed-forward layer with the square of ReLU as its activation.

    y = W_out relu(W_in x)². x: [..., width] -> [..., width].
    """

    expansion = 4.0

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(self.input(x)).square())

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: the hidden features, and the width that it reads and writes."""
        width, hidden = self.output.out_features, self.output.in_features
        return (
            Axis("width", None, width, (Slice("input.weight", 1), Slice("output.weight", 0))),
            Axis("hidden", None, hidden, (Slice("input.weight", 0), Slice("output.weight", 1))),
        )

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        inside = inputs or (shape.backward and cost.trains(self.input))
        first = cost.linear(self.input, shape.tokens, shape.backward, inputs)
        return first + cost.linear(self.output, shape.tokens, shape.backward, inside)
