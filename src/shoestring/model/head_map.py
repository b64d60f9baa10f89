"""A small matrix for each head: what makes features of queries and keys, for attention without a softmax."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from shoestring.contract.role import VECTOR


class HeadMap(nn.Module):
    """z_h = W_h x_h + b_h. x: [B, T, heads, inputs] -> [B, T, heads, features].

    weight: [heads, features, inputs]. bias: [heads, features], where there is one.
    identity: start as the first features themselves; else uniform within sqrt(6 / (features inputs)).
    """

    roles: ClassVar[dict[str, str]] = {"bias": VECTOR}

    def __init__(self, heads: int, inputs: int, features: int, *, bias: bool = False, identity: bool = False) -> None:
        super().__init__()
        self.identity = identity
        self.weight = nn.Parameter(torch.empty(heads, features, inputs))
        self.bias = nn.Parameter(torch.empty(heads, features)) if bias else None
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """The first values, as the class says; biases are 0."""
        _, features, inputs = self.weight.shape
        if self.identity:
            self.weight.copy_(torch.eye(features, inputs, device=self.weight.device))
        else:
            self.weight.uniform_(-1, 1).mul_((6 / (features * inputs)) ** 0.5)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        made = torch.einsum("bthd,hfd->bthf", x, self.weight.to(x.dtype))
        return made if self.bias is None else made + self.bias.to(x.dtype)
