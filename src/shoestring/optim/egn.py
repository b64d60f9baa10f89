"""Exact Gauss-Newton: the gradient, divided by the batch's own Gauss-Newton matrix."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoestring.method import Decay, NonNegative, Positive, Whole, method
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.curvature import Curvature
from shoestring.optim.decoupled import decoupled_step


@method(
    "optim",
    name="egn",
    paper="Exact Gauss-Newton Optimization for Training Deep Neural Networks, arXiv:2405.14402",
    claim="consistently exceeds, or at most matches, the generalisation of well-tuned SGD, Adam and SGN in supervised and "
    "reinforcement learning tasks",
    cost="`rows` backward passes more a step, over the first micro-batch; 4 rows bytes a parameter during a step, 4 bytes of state",
)
class EGN(StatefulOptimizer):
    """Divide the gradient by the Gauss-Newton matrix of the batch, which has low rank and is solved for exactly.

    Korbit, Adeoye, Bemporad and Zanon (2024), arXiv:2405.14402. For the gradient g [d] of all parameters together:

        H = R'R + damping I,  R [n, d]
        x = H^-1 g = (g - R' (R R' + damping I)^-1 R g) / damping        (a matrix of [n, n] is factorised, never one of [d, d])
        m <- momentum m + (1 - momentum) x
        w <- (1 - lr weight_decay) w - lr m / (1 - momentum^t)

    The paper's R'R is J'QJ / b, with a row of the Jacobian J for each sample and class: b V rows for b places of text and V tokens.
    rows = 0 is that, for small vocabularies. Else row i is the gradient of -log p of labels that are drawn from the model's own
    predictions p, summed over every n-th place, over the root of the number of places: the mean of R'R is the same matrix. The
    paper's line search and adaptive damping are left out, and lr and damping are given. It is meant for small heads and adapters.

    damping: lambda. More of it makes smaller steps, nearer to the gradient's direction.
    rows: n; 0: exact, a row for each place and token.
    momentum: of the steps.
    weight_decay: decoupled; the paper has none.
    Raises: ValueError, in `step`, where it was shown no curvature: call `observe` before each step.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 0.1,
        damping: Positive = 0.1,
        rows: Whole = 8,
        momentum: Decay = 0.9,
        weight_decay: NonNegative = 0.0,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "damping": damping, "rows": rows, "momentum": momentum}
        defaults |= {"weight_decay": weight_decay, "steps": 0}
        super().__init__(parameters, defaults)
        self._rows: dict[Tensor, Tensor] = {}
        """Of each parameter, [n, its size] of R at the present weights."""

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: a float32 momentum."""
        return sum(4 * parameter.numel() for parameter in parameters)

    def wants_curvature(self) -> bool:
        """Before every step."""
        return True

    def observe(self, curvature: Curvature) -> None:
        """Take R at the present weights; `.grad` is left as it is."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        found = curvature.factors(parameters, self.param_groups[0]["rows"])
        self.update_hessian(found)
        count, size = len(found[0]), sum(parameter.numel() for parameter in parameters)
        curvature.flops += 2 * count * size * (count + 2)  # R R', R g, and R' times what was solved for

    def update_hessian(self, rows: Sequence[Tensor]) -> None:
        """Take R of your own: for each parameter, in the order of the groups, [n, its shape], or its shape alone for one row.

        Raises: ValueError where there are more or fewer than parameters.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if len(rows) != len(parameters):
            raise ValueError(f"egn has {len(parameters)} parameters and was given rows of {len(rows)}")
        self._rows = {p: row.reshape(-1, p.numel()).float() for p, row in zip(parameters, rows, strict=True)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient: all of them together have one matrix. Raises: ValueError."""
        if closure is not None:
            raise ValueError("EGN takes no closure: compute the gradients, then call step()")
        present = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(parameter not in self._rows for parameter in present):
            raise ValueError("egn was shown no curvature: call observe() before each step")
        if not present:
            return
        damping = self.param_groups[0]["damping"]
        gradients = [gradient.flatten() for gradient in float_gradients(present)]
        rows = [self._rows[parameter] for parameter in present]
        gram = sum((row @ row.T for row in rows), torch.zeros(()).to(rows[0]))
        along = sum((row @ g for row, g in zip(rows, gradients, strict=True)), torch.zeros(()).to(rows[0]))
        gram.diagonal().add_(damping)
        solved = torch.cholesky_solve(along[:, None], torch.linalg.cholesky(gram))[:, 0]
        steps = {p: (g - row.T @ solved) / damping for p, row, g in zip(present, rows, gradients, strict=True)}
        self._rows = {}
        for group in self.param_groups:
            group["steps"] += 1
            moved = [parameter for parameter in group["params"] if parameter in steps]
            correction, averages = 1 - group["momentum"] ** group["steps"], self.moments(moved, "momentum")
            for parameter, average in zip(moved, averages, strict=True):
                average.lerp_(steps[parameter].view_as(average), 1 - group["momentum"])
            updates = [average / correction for average in averages]
            decoupled_step(moved, updates, lr=group["lr"], weight_decay=group["weight_decay"])

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Groups are not moved apart: `step` moves all."""
        raise TypeError("egn moves all groups at once: call step()")
