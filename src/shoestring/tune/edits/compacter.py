"""Bottleneck adapters whose matrices are sums of Kronecker products, with one factor shared by all layers."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.role import ADAPTER, VECTOR
from shoestring.errors import UsageError
from shoestring.method import Count, method
from shoestring.tune import matrix
from shoestring.tune.adapted import Adapted, product
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit, writers

SHARED = "slow"
"""The name of the decision's tensor that all layers share."""


class SlowFactors(nn.Module):
    """A_1 .. A_n [n, n, n], of all layers."""

    roles: ClassVar = {"slow": ADAPTER}

    def __init__(self, slow: Tensor) -> None:
        super().__init__()
        self.slow = nn.Parameter(slow)


class HypercomplexLinear(Adapted):
    """y = b(x) + W_up gelu(W_down b(x) + c) + d, with b the base; both matrices are `kronecker_sum`s.

    slow: the factors of all layers. They are no part of this module: the model holds them once.
    down_left [n, k / n], down_right [n, out / n], down_bias [k]: of W_down [k, out].
    up_left [n, out / n], up_right [n, k / n], up_bias [out]: of W_up [out, k].
    """

    FACTORS: ClassVar = ("down_left", "down_right", "up_left", "up_right")
    BIASES: ClassVar = ("down_bias", "up_bias")
    roles: ClassVar = {**dict.fromkeys(FACTORS, ADAPTER), **dict.fromkeys(BIASES, VECTOR)}

    down_left: Tensor
    down_right: Tensor
    down_bias: Tensor
    up_left: Tensor
    up_right: Tensor
    up_bias: Tensor

    def __init__(self, base: nn.Module, slow: SlowFactors, **tensors: Tensor) -> None:
        super().__init__(base)
        self.__dict__["shared"] = slow  # not registered: it would be saved with every layer
        for name in (*self.FACTORS, *self.BIASES):
            self.register_parameter(name, nn.Parameter(tensors[name]))

    def adapt(self, x: Tensor, plain: Tensor) -> Tensor:
        slow: Tensor = self.shared.slow  # type: ignore[union-attr, assignment]
        down = kronecker_sum(slow, self.down_left, self.down_right)
        up = kronecker_sum(slow, self.up_left, self.up_right)
        inner = F.gelu(F.linear(plain, down.to(plain.dtype), self.down_bias.to(plain.dtype)))
        return plain + F.linear(inner, up.to(plain.dtype), self.up_bias.to(plain.dtype))

    def added_flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        size = tokens * self.out_features * self.down_bias.numel()
        trained = self.trained
        # what the base makes takes a gradient where its input does, or it is trained itself
        inside = inputs or any(parameter.requires_grad for parameter in self.base.parameters())
        return product(trained, backward, inside, size) + product(trained, backward, trained or inside, size)

    def extra_repr(self) -> str:
        return f"n={len(self.down_left)}, bottleneck={self.down_bias.numel()}"


def kronecker_sum(slow: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """[n p, n q]: sum_i A_i kron (s_i t_i^T), of A [n, n, n], s [n, p] and t [n, q]."""
    fast = left[:, :, None] * right[:, None, :]
    whole = (slow[:, :, None, :, None] * fast[:, None, :, None, :]).sum(0)
    return whole.flatten(2).flatten(0, 1)


@method(
    "tune",
    kind="edit",
    name="compacter",
    paper="Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, arXiv:2106.04647",
    claim="with 0.047% of a pretrained model's parameters trained, on par with full fine-tuning on GLUE, and better on SuperGLUE "
    "and with few resources",
    cost="n (k + out) / n * 2 numbers a matrix and n³ in all; 4 k out operations a token",
)
class Compacter(AdapterEdit):
    """A small network of two layers after each part of the model, its matrices sums of Kronecker products.

        y = h + W_up gelu(W_down h + c) + d,   W = sum_{i=1..n} A_i kron (s_i t_i^T)

    with h [out] what the matrix that writes to the residual stream makes, W_down [bottleneck, out] and W_up [out, bottleneck]. The
    A_i [n, n] are shared by both matrices of all layers; s_i and t_i are each matrix's own. Of W_up the s_i start at zero, so
    that a tuned model starts as the one it is made of (the paper draws them too). The paper trains the norms of the layers as
    well; here they are frozen. No one matrix computes the same, so the adapters cannot be merged.

    n: terms of the sum, and the size of the A_i: a divisor of `bottleneck` and of the outputs.
    bottleneck: k, features between the two matrices.
    targets: patterns of the names of the matrices; empty: those that write to the residual stream.
    """

    name: ClassVar[str] = "compacter"
    kind: ClassVar[type[Adapted]] = HypercomplexLinear
    rate: ClassVar[float] = 3e-3

    def __init__(self, *, n: Count = 4, bottleneck: Count = 24, targets: tuple[str, ...] = ()) -> None:
        if bottleneck % n:
            raise ValueError(f"compacter: n = {n} does not divide bottleneck = {bottleneck}")
        super().__init__(targets)
        self.n, self.bottleneck = n, bottleneck

    def chosen_by_itself(self, model: LanguageModule, names: Sequence[str]) -> list[str]:
        return writers(names)

    def begin(self, base: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        _, outputs = matrix.sizes(base)
        if outputs % self.n:
            raise UsageError(f"n = {self.n} does not divide its {outputs} outputs")
        inner, outer = self.bottleneck // self.n, outputs // self.n

        def drawn(size: int) -> Tensor:
            return torch.randn(self.n, size, generator=generator)

        # entries of W_down have the variance 1 / out, with A_i of variance 1 / n
        return {"down_left": drawn(inner), "down_right": drawn(outer) / math.sqrt(outputs), "up_right": drawn(inner)}

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        made = super().decide(model, evidence)
        generator = torch.Generator().manual_seed(evidence.seed + 1)
        slow = torch.randn(self.n, self.n, self.n, generator=generator) / math.sqrt(self.n)
        return Decision(made.values, {**made.tensors, f"{SHARED}.{SHARED}": slow})

    def layers(self, model: LanguageModule, decision: Decision) -> dict[str, Adapted]:
        """As `AdapterEdit.layers`; all have the same shared factors."""
        tensors = dict(decision.tensors)
        first = model.get_submodule(decision.values[CHOSEN][0])
        shared = SlowFactors(tensors.pop(f"{SHARED}.{SHARED}").to(matrix.device_of(first), copy=True))
        return super().layers(model, Decision({**decision.values, SHARED: shared}, tensors))

    def trained(self, decision: Decision, weights: Mapping[str, Tensor]) -> Decision:
        """As `AdapterEdit.trained`, with the shared factors: of several adapters upon one another the last one's."""
        made, own = super().trained(decision, weights), re.compile(rf"{self.name}(?:_(\d+))?\.{SHARED}")
        found = {int(match[1] or 0): tensor for name, tensor in weights.items() if (match := own.fullmatch(name))}
        if not found:
            return made
        return Decision(made.values, {**made.tensors, f"{SHARED}.{SHARED}": found[max(found)].detach()})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """As `AdapterEdit.apply`; the shared factors are a module at the top of the model."""
        model = super().apply(model, decision)
        shared: Any = model.get_submodule(decision.values[CHOSEN][0]).shared
        number = sum(isinstance(module, SlowFactors) for module in model.children())
        model.add_module(f"{self.name}_{number}" if number else self.name, shared)
        return model

    def place(self, base: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> HypercomplexLinear:
        _, outputs = matrix.sizes(base)
        zeros = tensors["down_left"].new_zeros
        own = {
            "up_left": zeros(self.n, outputs // self.n),
            "down_bias": zeros(self.bottleneck),
            "up_bias": zeros(outputs),
            **tensors,
        }
        return HypercomplexLinear(base, values[SHARED], **own)

    def shape(self) -> str:
        return f"bottlenecks of {self.bottleneck} features, {self.n} Kronecker products a matrix,"
