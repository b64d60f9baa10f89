"""AdamW, fused where it can be."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, Epsilon, NonNegative, Positive, method
from shoestring.optim.unguarded import Unguarded

_STEP = inspect.unwrap(torch.optim.AdamW.step)
"""torch's step without what prepares it for the compiler, and imports that."""

FUSED = frozenset({"cpu", "cuda", "mps", "xpu"})
"""The devices for which torch has a fused AdamW kernel."""


@method(
    "optim",
    name="adamw",
    paper="Decoupled Weight Decay Regularization, arXiv:1711.05101",
    claim="decay apart from the gradient makes its best value nearly free of the learning rate; generalises much "
    "better than Adam with L2 on image classification",
    cost="about a dozen operations and 8 bytes of state a float32 parameter per step",
)
class AdamW(Unguarded, torch.optim.AdamW):
    """Adam with weight decay apart from the gradient: torch's own, under this library's option names.

    Loshchilov & Hutter (2019), arXiv:1711.05101. For a parameter w with gradient g, at step t = 1, 2, ...:

        m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
        w <- (1 - lr weight_decay) w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    amsgrad: divide by the root of the largest v so far (Reddi, Kale & Kumar 2018, arXiv:1904.09237), for one more state
    tensor; each v is corrected for its start, as torch does it. The state has the parameters' type. beta2 = 0.95 and
    weight_decay = 0.1 are the custom of language models. The fused kernel is used for each group whose parameters are all of
    a floating type on one of the devices `FUSED`.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})
    elementwise = True

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 3e-3,
        beta1: Decay = 0.9,
        beta2: Decay = 0.95,
        epsilon: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.1,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(
            parameters, lr=lr, betas=(beta1, beta2), eps=epsilon, weight_decay=weight_decay, amsgrad=amsgrad
        )

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: two moments, and a float32 step count each."""
        return sum(2 * parameter.numel() * parameter.element_size() + 4 for parameter in parameters)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # None, not False: torch then still chooses its multi-tensor loop where that is the faster one
        group["fused"] = all(p.is_floating_point() and p.device.type in FUSED for p in group["params"]) or None

    def step(self, closure: Any = None) -> Any:
        if torch.compiler.is_compiling():
            return super().step(closure)
        with torch.no_grad():
            return _STEP(self, closure)
