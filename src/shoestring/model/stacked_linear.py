"""A stack of linear layers of one shape, each applied to rows of its own: the matrices of experts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.model.grouped_product import grouped_product


class StackedLinear(nn.Module):
    """y = W_e x for the rows x of expert e; no bias. weight: [E, out, in].

    The rows are sorted by expert, so that each expert is one matrix product over a contiguous slice, and nothing is padded. It does
    not look like a linear layer, so that edits which adapt or lower those leave it alone.
    """

    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features))
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """As a linear layer: normal, of standard deviation 1 / sqrt(in)."""
        self.weight.normal_(std=self.weight.shape[2] ** -0.5)

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """x [N, in] -> [N, out]. counts: rows of each expert, in order; they add up to N."""
        return grouped_product(x, self.weight, counts)

    def flops(self, tokens: int, backward: bool = False, inputs: bool = True) -> int:
        """As `contract.cost.linear`, of `tokens` rows of all experts."""
        return cost.matrix_product(self.weight, tokens, backward, inputs)
