"""A stack of linear layers of one shape, each applied to rows of its own: the matrices of experts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StackedLinear(nn.Module):
    """y = W_e x for the rows x of expert e; no bias. weight: [E, out, in].

    The rows are sorted by expert, so that each expert is one matrix product over a contiguous slice, and nothing is padded.
    """

    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features))
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """As a linear layer: normal, of standard deviation 1 / sqrt(in)."""
        self.weight.normal_(std=self.in_features**-0.5)

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """x [N, in] -> [N, out]. counts: rows of each expert, in order; they add up to N."""
        # `unbind`, not an index each: its backward pass is one stack, and not E gradients of the whole
        both = zip(self.weight.unbind(), x.split(list(counts)), strict=True)
        return torch.cat([F.linear(part, weight) for weight, part in both])
