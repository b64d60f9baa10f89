"""Boom: a feed-forward layer whose second matrix is a sum."""

import torch
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import method


class Gain(nn.Module):
    """A factor on each feature. weight: [width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@method(
    "model",
    kind="channel mixer",
    name="boom",
    paper="Single Headed Attention RNN: Stop Thinking With Your Head, arXiv:1911.11423",
    claim="the parameters and the compute of one matrix, where a feed-forward layer has two",
    cost="one matrix of width x hidden",
)
class Boom(nn.Module):
    """Widens a token, applies an activation, and adds up the vectors of its width that this gives.

    Stephen Merity, 2019, arXiv:1911.11423.

    z = a(W x + b) [hidden], a(z) = z sigmoid(1.702 z); y = g * sum_n z[n width : (n + 1) width]. x: [..., width] -> [..., width].

    Features of `hidden` beyond a multiple of the width are left out, as in the author's code.
    Different from the paper: the learnt gain g, which lets a layer start at zero as all others do; no dropout.
    """

    expansion = 4.0

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        if hidden < width:
            raise ValueError(f"boom adds up vectors of the width: hidden = {hidden} must be at least width = {width}")
        self.input = nn.Linear(width, hidden // width * width)
        self.output = Gain(width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.input(x)
        z = z * (1.702 * z).sigmoid()
        return self.output(z.unflatten(-1, (-1, x.shape[-1])).sum(-2))

    def axes(self) -> tuple[Axis, ...]:
        """The axis of the width, on which the rows of the matrix lie too."""
        width = len(self.output.weight)
        rows = range(0, self.input.out_features, width)
        own = [Slice(name, 0, start) for name in ("input.weight", "input.bias") for start in rows]
        return (Axis("width", None, width, (Slice("input.weight", 1), Slice("output.weight", 0), *own)),)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        return cost.linear(self.input, shape.tokens, shape.backward, inputs)
