"""Weight matrices as products of smaller tensors."""

import math

import torch
from torch import Tensor, nn

from shoestring.contract.cost import trains
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Fraction, Whole, method


class TensorLinear(nn.Module):
    """y = W x + b with W[(o1 o2), (i1 i2)] = sum_c A[c, o1, i1] B[c, o2, i2]: two tensors joined by a bond of size c.

    x [..., i1 i2] -> y [..., o1 o2]. first: A. second: B. bias: [o1 o2], or None.
    """

    def __init__(self, first: Tensor, second: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.bias = bias
        self.bond, out, inside = first.shape
        self.out_features, self.in_features = out * second.shape[1], inside * second.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        _, o1, i1 = self.first.shape
        _, o2, i2 = self.second.shape
        rows = x.reshape(-1, i1, i2)
        # [n, i1, c o2], then the sum over i1 and c
        half = rows @ self.second.reshape(-1, i2).T
        half = half.view(-1, i1, self.bond, o2).transpose(1, 2).reshape(-1, self.bond * i1, o2)
        made = self.first.transpose(0, 1).reshape(o1, -1) @ half
        made = made.reshape(*x.shape[:-1], self.out_features)
        return made if self.bias is None else made + self.bias

    def weight_of(self) -> Tensor:
        """[out, in]: W."""
        _, o1, i1 = self.first.shape
        _, o2, i2 = self.second.shape
        joined = self.first.flatten(1).T @ self.second.flatten(1)
        return joined.view(o1, i1, o2, i2).transpose(1, 2).reshape(self.out_features, self.in_features)

    def flops(self, tokens: int, backward: bool = False, inputs: bool = True) -> int:
        """As `contract.cost.linear`."""
        _, o1, i1 = self.first.shape
        _, o2, i2 = self.second.shape
        own = trains(self)
        one, two = 2 * tokens * i1 * i2 * self.bond * o2, 2 * tokens * self.bond * i1 * o1 * o2
        back = backward and (own or inputs)
        return one * (1 + (backward and own) + (backward and inputs)) + two * (1 + (back and own) + back)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bond={self.bond}"


@method(
    "surgery",
    kind="edit",
    name="compactifai",
    paper="CompactifAI: Extreme Compression of Large Language Models using Quantum-Inspired Tensor Networks, arXiv:2401.14109",
    claim="with quantisation, LLaMA 7B in 93 % less memory with 70 % fewer parameters, for 2 to 3 % of accuracy",
    cost="a singular value decomposition of each matrix, as large as the matrix",
)
class CompactifAI:
    """Split each weight matrix into two tensors with a truncated bond.

    W [out, in] with out = o1 o2 and in = i1 i2 is laid out as [o1 i1, o2 i2]; of its singular values the largest stay:

        W = U S V^T,   A = U sqrt(S),  B = sqrt(S) V^T,   the bond as large as `share` of the parameters allows

    Factors of a size are as equal as they can be. The paper splits into longer chains too, and finds layers to differ in what they
    lose, deeper ones less: `first` leaves the first layers whole. Folded into plain layers for export, a matrix is as large as it
    was. A product takes more operations than the matrix where the bond is large.

    share: of each matrix's parameters that stay.
    first: layers that are left whole.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, share: Fraction = 0.5, first: Whole = 0) -> None:
        if share <= 0:
            raise ValueError("compactifai: share is above 0")
        self.share, self.first = share, first

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The tensors. Raises: UsageError where no matrix can be split."""
        tensors, names = dict[str, Tensor](), list[str]()
        for one in model.anatomy().matrices():
            if one.layer < self.first or not isinstance(model.get_submodule(one.name), nn.Linear):
                continue
            first, second = split(one.weight.detach().float().cpu(), self.share)
            tensors |= {f"{one.name}.first": first, f"{one.name}.second": second}
            names.append(one.name)
        if not names:
            raise UsageError("compactifai finds no plain weight matrix to split")
        return Decision({"matrices": names}, tensors)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with tensors in place of matrices."""
        for name in decision.values["matrices"]:
            old = model.get_submodule(name)
            assert isinstance(old, nn.Linear)
            first, second = (
                decision.tensors[f"{name}.{part}"].to(old.weight, copy=True) for part in ("first", "second")
            )
            model.set_submodule(name, TensorLinear(first, second, old.bias))
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model of plain matrices that computes the same, as large as before."""
        for name, module in list(model.named_modules()):
            if isinstance(module, TensorLinear):
                model.set_submodule(name, plain_linear(module.weight_of().detach(), module.bias))
        model.changed()
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        bonds = sorted({m.bond for m in model.modules() if isinstance(m, TensorLinear)})
        count = len(decision.values["matrices"])
        return f"compactifai: {count} matrices with bonds of {bonds[0]} to {bonds[-1]}: {numbers:,} parameters"


def split(weight: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(A [c, o1, i1], B [c, o2, i2]) of a matrix [out, in], with at most this share of its numbers, and a bond of at least 1."""
    (o1, o2), (i1, i2) = _factors(weight.shape[0]), _factors(weight.shape[1])
    laid = weight.view(o1, o2, i1, i2).transpose(1, 2).reshape(o1 * i1, o2 * i2)
    left, values, right = torch.linalg.svd(laid, full_matrices=False)
    most = len(values)
    bond = most if share == 1 else max(1, min(most, int(share * weight.numel() / sum(laid.shape))))
    root = values[:bond].sqrt()
    first = (left[:, :bond] * root).T.reshape(bond, o1, i1)
    return first.contiguous(), (root[:, None] * right[:bond]).contiguous().view(bond, o2, i2)


def _factors(size: int) -> tuple[int, int]:
    """Two numbers whose product is `size`, as near to each other as they can be, the smaller first."""
    small = next(number for number in range(math.isqrt(size), 0, -1) if size % number == 0)
    return small, size // small


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain layer of a matrix [out, in] and a bias [out]."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach())
    return made
