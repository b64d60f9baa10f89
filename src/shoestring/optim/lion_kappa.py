"""Lion-kappa: Lion with another convex function than the sum of absolute values, and a monitor of its bound."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.method import Decay, NonNegative, Positive, method
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.decoupled import decoupled_step
from shoestring.optim.kappa import KappaName, by_element, gauge, subgradient

Exponent = Annotated[float, Interval(ge=1, le=1000)]
Share = Annotated[float, Interval(gt=0, le=1)]


@dataclass(frozen=True)
class Bound:
    """Where one parameter is in what its weight decay allows.

    parameter: its name, or its number in its group. group: the number of its group. limit: 1 / weight_decay, infinite
    without decay. gauge: the dual norm of the weights (`shoestring.optim.kappa.gauge`), at most `limit` inside.
    weights: how many there are. outside: how many of them are beyond the limit; where the kappa bounds the tensor as a
    whole, all or none.
    """

    parameter: str
    group: int
    limit: float
    gauge: float
    weights: int
    outside: int

    @property
    def inside(self) -> bool:
        """Whether the parameter keeps the bound."""
        return self.gauge <= self.limit

    @property
    def excess(self) -> float:
        """How far the dual norm is beyond the limit; 0 inside."""
        return max(0.0, self.gauge - self.limit)


@method(
    "optim",
    name="lion_kappa",
    paper="Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts, arXiv:2310.05898",
    claim="Lion minimises the loss within |x|_inf <= 1 / weight decay; other kappa solve min f(x) + kappa*(x)",
    cost="5 passes over the weights, those of kappa, and 4 bytes of state a parameter per step",
)
class LionKappa(StatefulOptimizer):
    """Lion whose sign is replaced by a subgradient of a convex function kappa.

    Chen, Liu, Liang & Liu (2024), arXiv:2310.05898. For a parameter w with gradient g and momentum m:

        c = beta1 m + (1 - beta1) g
        w <- w - lr (grad kappa(c) + weight_decay w)
        m <- beta2 m + (1 - beta2) g

    It minimises loss(w) + kappa*(weight_decay w) / weight_decay, whose second term is infinite beyond |w|* <=
    1 / weight_decay: outside, the excess shrinks by the factor 1 - lr weight_decay a step at the least, whatever the
    gradients, and inside the weights stay there (while lr weight_decay <= 1). `bound_report` says where they are.

    kappa: 'l1' is Lion, the default; see `shoestring.optim.kappa.subgradient` for all. p: of 'lp', 2 being the
    gradient's direction. width: e of 'threshold', 'huber' and 'relativistic', in the unit of the gradient. share: of
    the elements of a tensor that 'top' moves. scaled: 'lp' and 'linf' move a weight by about lr, and bound the mean of
    its tensor; False is the paper's, which moves the tensor by lr. Ours: a kappa that is not a sum over elements
    is taken over each parameter by itself, where the paper has one vector of all.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 2e-3,
        beta1: Decay = 0.95,
        beta2: Decay = 0.98,
        weight_decay: NonNegative = 0.15,
        kappa: KappaName = "l1",
        p: Exponent = 2.0,
        width: Positive = 1e-3,
        share: Share = 0.1,
        scaled: bool = True,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay}
        defaults |= {"kappa": kappa, "p": p, "width": width, "share": share, "scaled": scaled}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: float32 momentum."""
        return sum(4 * parameter.numel() for parameter in parameters)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        gradients, momenta = float_gradients(parameters), self.moments(parameters, "momentum")
        options = {key: group[key] for key in ("p", "width", "share", "scaled")}
        mixed = torch._foreach_lerp(momenta, gradients, 1 - group["beta1"])
        updates = [subgradient(each, group["kappa"], **options) for each in mixed]
        decoupled_step(parameters, updates, lr=group["lr"], weight_decay=group["weight_decay"])
        torch._foreach_lerp_(momenta, gradients, 1 - group["beta2"])

    @torch.no_grad()
    def bound_report(self) -> list[Bound]:
        """Where every parameter is in what its weight decay allows, group by group. It reads the weights: not each step."""
        report = []
        for number, group in enumerate(self.param_groups):
            options = {key: group[key] for key in ("p", "share", "scaled")}
            limit = 1 / group["weight_decay"] if group["weight_decay"] else math.inf
            names = group.get("param_names", range(len(group["params"])))
            for name, parameter in zip(names, group["params"], strict=True):
                weights = parameter.float()
                reach = gauge(weights, group["kappa"], **options).item()
                if by_element(group["kappa"]):
                    outside = int((weights.abs() > limit).sum())
                else:
                    outside = weights.numel() if reach > limit else 0
                report.append(Bound(str(name), number, limit, reach, weights.numel(), outside))
        return report
