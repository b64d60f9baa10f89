"""Sophia: momentum divided by a diagonal of the Hessian, clipped coordinate by coordinate."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from shoestring.method import Count, Decay, Epsilon, NonNegative, Positive, Seed, method
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.curvature import Curvature
from shoestring.optim.decoupled import decoupled_step


@method(
    "optim",
    name="sophia",
    paper="Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training, arXiv:2305.14342",
    claim="half the steps, compute and time of AdamW to the same loss, on GPT-2 of 125 M to 770 M parameters",
    cost="8 bytes of state a parameter; every tenth step a forward and backward pass more, over some of the batch "
    "(gnb), or the cost of three (hutchinson)",
)
class Sophia(StatefulOptimizer):
    """Momentum over an estimate of the Hessian's diagonal, no coordinate moving further than lr.

    Liu et al. (2023), arXiv:2305.14342, Algorithm 3. For a parameter w with gradient g, at step t = 1, 2, ...:

        m <- beta1 m + (1 - beta1) g
        h <- beta2 h + (1 - beta2) h_hat        at t = 1, 1 + k, 1 + 2 k ...
        w <- (1 - lr weight_decay) w - lr clip(m / max(gamma h, epsilon), 1)

    with clip(x, 1) = min(max(x, -1), 1), k = `interval` and h_hat by one of two estimators. 'gnb', Gauss-Newton-Bartlett
    (Sophia-G): B g^2, where g is the gradient of the mean loss of B targets against labels drawn from the model's own
    predictions. 'hutchinson' (Sophia-H): u * (H u), where u is standard normal, drawn from `seed` and the number of
    estimates before it; H is the Hessian of the mean loss.

    The paper's values are the defaults, but lr: beta1 = 0.96, beta2 = 0.99, epsilon = 1e-12, k = 10, weight_decay = 0.2,
    gamma = 0.05 for 'gnb' (take 0.01 for 'hutchinson'). Its rule for gamma: 10 to 50 % of the coordinates are not clipped
    (`unclipped`). h starts at 0, so for the first hundred estimates, a thousand steps, most are: correct_bias, which is
    ours, divides h by 1 - beta2^n after n estimates, for runs that are shorter.

    Derivatives come from a `Curvature`: the training loop hands one over; in a loop of your own call `observe` with a
    `LogitsCurvature` before each step for which `wants_curvature()` says so, or `update_hessian` with an estimate of
    your own. A step without any estimate is refused.

    gamma: factor on the Hessian; more of it clips fewer coordinates.
    estimator: of the Hessian's diagonal: 'gnb' or 'hutchinson'.
    interval: steps between two estimates.
    correct_bias: whether the start of h at 0 is corrected for.
    Raises: ValueError, in `step`, where a parameter has had no estimate.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 2e-3,
        beta1: Decay = 0.96,
        beta2: Decay = 0.99,
        gamma: Positive = 0.05,
        epsilon: Epsilon = 1e-12,
        weight_decay: NonNegative = 0.2,
        estimator: Literal["gnb", "hutchinson"] = "gnb",
        interval: Count = 10,
        correct_bias: bool = False,
        seed: Seed = 0,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "gamma": gamma, "epsilon": epsilon}
        defaults |= {"weight_decay": weight_decay, "estimator": estimator, "interval": interval}
        # counted in the groups: steps taken, and estimates of the Hessian's diagonal
        defaults |= {"correct_bias": correct_bias, "seed": seed, "steps": 0, "estimates": 0}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: float32 momentum and Hessian diagonal."""
        return sum(8 * parameter.numel() for parameter in parameters)

    def wants_curvature(self) -> bool:
        """Whether the next step is one before which the Hessian's diagonal is to be estimated anew."""
        return any(group["steps"] % group["interval"] == 0 for group in self.param_groups)

    def observe(self, curvature: Curvature) -> None:
        """Estimate the Hessian's diagonal at the present weights; `.grad` is left as it is."""
        for name in ("gnb", "hutchinson"):
            groups = [group for group in self.param_groups if group["estimator"] == name]
            parameters = [parameter for group in groups for parameter in group["params"]]
            if not groups:
                continue
            if name == "gnb":
                gradients, targets = curvature.sampled_gradients(parameters)
                estimates = [targets * gradient.float().square() for gradient in gradients]
            else:
                vectors = _normal(parameters, groups[0]["seed"], groups[0]["estimates"])
                products = curvature.hessian_vector_products(parameters, vectors)
                estimates = [u * product.float() for u, product in zip(vectors, products, strict=True)]
            self._update(groups, estimates)

    def update_hessian(self, estimates: Iterable[Tensor]) -> None:
        """Take your own estimate of the Hessian's diagonal: a tensor for each parameter, in the order of the groups.

        Raises: ValueError where there are more or fewer than parameters.
        """
        given = list(estimates)
        count = sum(len(group["params"]) for group in self.param_groups)
        if len(given) != count:
            raise ValueError(f"sophia has {count} parameters and was given {len(given)} estimates")
        self._update(self.param_groups, given)

    @torch.no_grad()
    def _update(self, groups: Sequence[dict[str, Any]], estimates: list[Tensor]) -> None:
        rest = iter(estimates)
        for group in groups:
            diagonals = self.moments(group["params"], "hessian")
            own = [estimate.float() for _, estimate in zip(diagonals, rest, strict=False)]
            torch._foreach_lerp_(diagonals, own, 1 - group["beta2"])
            group["estimates"] += 1

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        if any("hessian" not in self.state[parameter] for parameter in parameters):
            raise ValueError("sophia was shown no curvature: call observe() before each step that wants_curvature()")
        momenta, denominators = self.moments(parameters, "momentum"), self._denominators(parameters, group)
        torch._foreach_lerp_(momenta, float_gradients(parameters), 1 - group["beta1"])
        updates = torch._foreach_div(momenta, denominators)
        torch._foreach_clamp_min_(updates, -1.0)
        torch._foreach_clamp_max_(updates, 1.0)
        decoupled_step(parameters, list(updates), lr=group["lr"], weight_decay=group["weight_decay"])
        group["steps"] += 1

    def _denominators(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """max(gamma h, epsilon)."""
        correction = 1 - group["beta2"] ** group["estimates"] if group["correct_bias"] else 1.0
        scaled = list(torch._foreach_mul(self.moments(parameters, "hessian"), group["gamma"] / correction))
        torch._foreach_clamp_min_(scaled, group["epsilon"])
        return scaled

    @torch.no_grad()
    def unclipped(self) -> float:
        """The share of coordinates whose last update was not clipped; gamma is to keep it between 0.1 and 0.5.

        Raises: ValueError before the first step.
        """
        inside = total = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if "momentum" in self.state[parameter]:
                    momentum, bound = self.state[parameter]["momentum"], self._denominators([parameter], group)[0]
                    inside += int((momentum.abs() < bound).sum())
                    total += momentum.numel()
        if not total:
            raise ValueError("sophia has taken no step yet")
        return inside / total


def _normal(parameters: Sequence[Tensor], seed: int, number: int) -> list[Tensor]:
    """Standard normal numbers in float32 of each parameter's shape, on its device: those of estimate `number`."""
    mixed = (seed * 1_000_003 + number) % 2**63
    generators = {p.device: torch.Generator(p.device).manual_seed(mixed) for p in parameters}
    return [torch.randn(p.shape, generator=generators[p.device], device=p.device) for p in parameters]
