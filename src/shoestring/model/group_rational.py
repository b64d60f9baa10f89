"""Group-rational Kolmogorov-Arnold layer: learnt rational activations before each matrix."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import Count, method
from shoestring.model.two_matrices import TwoMatrices

NUMERATOR = 6
"""Coefficients of the polynomial above; below there are 4, from that of x on."""


@functools.cache
def start(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(coefficients of the numerator, of the denominator) at the start: 'identity', or 'silu' by least squares on [-4, 4]."""
    if name == "identity":
        # (x + c x³) / (1 + c x²): a denominator of zeros would never take a gradient through its absolute value
        return (0.0, 1.0, 0.0, 0.01, 0.0, 0.0), (0.0, 0.01, 0.0, 0.0)
    with torch.device("cpu"), torch.no_grad():
        # silu is x/2 and an even function, so an even denominator serves, and is positive
        x = torch.linspace(-4, 4, 401, dtype=torch.float64)
        y = F.silu(x)
        columns = [x**power for power in range(NUMERATOR)] + [-y * x**2, -y * x**4]
        found = torch.linalg.lstsq(torch.stack(columns, 1), y[:, None]).solution[:, 0].tolist()
    return tuple(found[:NUMERATOR]), (0.0, found[NUMERATOR], 0.0, found[NUMERATOR + 1])


class GroupRational(nn.Module):
    """f_g(x) = (a_0 + .. + a_5 x^5) / (1 + |b_1 x + .. + b_4 x^4|), with coefficients of each group g of features.

    x: [..., features] -> the same. begin: what it is at the start. `group` says which function each feature has, so that features
    can be cut away.
    """

    group: Tensor

    def __init__(self, features: int, groups: int, begin: str) -> None:
        super().__init__()
        if features % groups:
            raise ValueError(f"groups = {groups} must divide the {features} features")
        self.register_buffer("group", torch.arange(features) * groups // features)
        above, below = start(begin)
        self.above = nn.ParameterList([nn.Parameter(torch.full((groups,), value)) for value in above])
        self.below = nn.ParameterList([nn.Parameter(torch.full((groups,), value)) for value in below])

    def forward(self, x: Tensor) -> Tensor:
        below = self._polynomial(self.below, x) * x
        return self._polynomial(self.above, x) / (1 + below.abs())

    def _polynomial(self, coefficients: nn.ParameterList, x: Tensor) -> Tensor:
        """The polynomial of these coefficients, the lowest first, of each feature."""
        own = [coefficient.to(x.dtype)[self.group] for coefficient in coefficients]
        found = own[-1]
        for coefficient in reversed(own[:-1]):
            found = found * x + coefficient
        return found


@method(
    "model",
    kind="channel mixer",
    name="group_rational",
    paper="FlashKAT: Understanding and Addressing Performance Bottlenecks in the Kolmogorov-Arnold Transformer, arXiv:2505.13813; "
    "Kolmogorov-Arnold Transformer, arXiv:2409.10594",
    claim="in vision transformers more accurate than the feed-forward layer it replaces; 86.5 times as fast as the first "
    "implementation on a GPU",
    cost="two matrices of width x hidden, and about 20 operations a feature for the activations",
)
class GroupRationalFeedForward(TwoMatrices):
    """A feed-forward layer with a learnt rational function before each matrix, shared by groups of features.

    Xingyi Yang and Xinchao Wang, 2024, arXiv:2409.10594; Matthew Raffel and Lizhong Chen, 2025, arXiv:2505.13813.

    y = W_out f_2(W_in f_1(x)), f as `GroupRational`; f_1 is the identity at the start, f_2 close to silu.
    x: [..., width] -> [..., width].

    Different from the papers: f is built of torch's operations, whose backward pass has no atomic additions; the coefficients
    of a power are a vector of their own.

    groups: of features that share a function.
    """

    def __init__(self, width: int, hidden: int, *, groups: Count = 8) -> None:
        super().__init__(width, hidden)
        self.first, self.second = GroupRational(width, groups, "identity"), GroupRational(hidden, groups, "silu")

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.second(self.input(self.first(x))))

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: the hidden features, and the width that it reads and writes."""
        width, hidden = super().axes()
        return (
            Axis("width", None, width.size, (*width.slices, Slice("first.group", 0))),
            Axis("hidden", None, hidden.size, (*hidden.slices, Slice("second.group", 0))),
        )

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass, the matrices' products; the functions before them are trained, so inputs take a gradient."""
        inside = inputs or (shape.backward and cost.trains(self.first))
        after = inside or (shape.backward and (cost.trains(self.input) or cost.trains(self.second)))
        first = cost.linear(self.input, shape.tokens, shape.backward, inside)
        return first + cost.linear(self.output, shape.tokens, shape.backward, after)
