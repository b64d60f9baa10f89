"""What feed-forward layers of two matrices and an activation between them share."""

from torch import nn

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape


class TwoMatrices(nn.Module):
    """`input` [hidden, width] and `output` [width, hidden]; what is between them is the subclass's."""

    expansion = 4.0

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.input = nn.Linear(width, hidden, bias=bias)
        self.output = nn.Linear(hidden, width, bias=bias)

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
