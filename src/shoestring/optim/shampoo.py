"""Shampoo: the gradient multiplied from both sides by inverse roots of its second moments."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from shoestring.method import Count, Decay, Epsilon, NonNegative, Positive, method
from shoestring.optim.kronecker import (
    TINY,
    KroneckerOptimizer,
    accumulate,
    inverse_root,
    kept_sides,
    rotate,
    state_bytes,
)

MAX_SIDE = 1024


@method(
    "optim",
    name="shampoo",
    paper="Shampoo: Preconditioned Stochastic Tensor Optimization, arXiv:1802.09568; "
    "A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer, arXiv:2309.06497",
    claim="converges considerably faster than SGD, AdaGrad and Adam at a comparable time per step; PyTorch: at most "
    "10 % more time per step",
    cost="4 m n (m + n) FLOPs a step per m x n matrix, and an eigendecomposition of each side every 10 steps; "
    "8 (m n + m^2 + n^2) bytes of state",
)
class Shampoo(KroneckerOptimizer):
    """Momentum preconditioned on both sides, at the length of Adam's step.

    Gupta et al. (2018), arXiv:1802.09568, in the form it is used in (Anil et al. 2020, arXiv:2002.09018; Shi et al.
    2023, arXiv:2309.06497). For a weight W [..., m, n] (leading dimensions are a stack of matrices) with gradient G, at
    step t = 1, 2, ...:

        L <- beta2 L + (1 - beta2) G G^T;   R <- beta2 R + (1 - beta2) G^T G
        every `every` steps from the first: P_L = (L / (1 - beta2^t) + damping s I)^(-1/root), P_R likewise
        M <- beta1 M + (1 - beta1) G;   D = P_L (M / (1 - beta1^t)) P_R
        graft 'adam': D <- D |A| / |D|, A = Adam's step from M and v <- beta2 v + (1 - beta2) G * G
        W <- W - lr (D + weight_decay W)

    where s is the largest eigenvalue of the factor under the root. root: 4 is the paper's; 2, the square root of the
    Kronecker approximation itself, is what SOAP's authors connect with Adafactor. max_side: a longer side is not
    preconditioned, and the other then takes the root 2, as the paper does for one side; where both are too long, D is
    momentum. The paper sums its factors from a start of epsilon I, has neither momentum nor grafting, and takes the
    roots at every step. graft 'none': the length of D is its own, for which lr must be found anew. State and
    decompositions are float32, and float64 where the weights are.

    damping: added to each factor, as a share of its largest eigenvalue.
    graft: whose length a step has: 'adam', or 'none' for its own.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 3e-3,
        beta1: Decay = 0.9,
        beta2: Decay = 0.95,
        epsilon: Epsilon = 1e-8,
        damping: Positive = 1e-6,
        weight_decay: NonNegative = 0.1,
        root: Literal[2, 4] = 4,
        graft: Literal["adam", "none"] = "adam",
        every: Count = 10,
        max_side: Count = MAX_SIDE,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "damping": damping}
        defaults |= {"weight_decay": weight_decay, "root": root, "graft": graft, "every": every, "max_side": max_side}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state takes: momentum and v, and a factor and a root for each side; float32."""
        return state_bytes(parameters, MAX_SIDE)

    def step_flops(self) -> int:
        """Operations of one step, the roots spread over the steps between: products, and about 9 d^3 for an eigh."""
        total = 0.0
        for group in self.param_groups:
            for parameter in group["params"]:
                size = math.prod(parameter.shape[-2:])
                for side in kept_sides(parameter, group["max_side"]).values():
                    each = 4 * size * side + (9 + 2) * side**3 / group["every"]
                    total += each * (parameter.numel() // size)
        return round(total)

    def direction(self, parameters: list[Tensor], gradients: Tensor, step: int, group: Mapping[str, Any]) -> Tensor:
        """D."""
        beta1, beta2 = group["beta1"], group["beta2"]
        factors, roots = (self.sides(parameters, suffix, group["max_side"]) for suffix in ("", "_root"))
        momentum = self.stack(parameters, "momentum", *gradients.shape[1:])
        accumulate(factors, gradients, beta2)
        if (step - 1) % group["every"] == 0:
            for side, factor in factors.items():
                root = group["root"] if len(factors) == 2 else 2
                roots[side].copy_(inverse_root(factor / (1 - beta2**step), root, group["damping"]))
        momentum.lerp_(gradients, 1 - beta1)
        corrected = momentum / (1 - beta1**step)
        direction = rotate(corrected, roots)  # the roots are symmetric, so their transposes are themselves
        if group["graft"] == "none":
            return direction
        second = self.stack(parameters, "second", *gradients.shape[1:])
        second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        corrected.div_((second / (1 - beta2**step)).sqrt_().add_(group["epsilon"]))
        return direction.mul_(_length(corrected) / _length(direction).clamp_min(TINY))


def _length(matrices: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
