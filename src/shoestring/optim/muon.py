"""Muon: momentum, orthogonalised."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from shoestring.method import Count, Decay, Iterations, NonNegative, Positive, Seed, Whole, method
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.decoupled import decoupled_step
from shoestring.optim.polar import PolarMethod, Sketch, fast_precision, polar_factor, polar_flops
from shoestring.optim.polar_report import PolarReport, polar_report

Precision = Literal["auto", "bfloat16", "float32"]
BATCH = {"cpu": 5 * 2**18, "other": 2**24}
"""The most elements orthogonalised at once, by device; on a CPU, as many as stay in its cache."""


@method(
    "optim",
    name="muon",
    paper="Muon is Scalable for LLM Training, arXiv:2502.16982",
    claim="about twice the computational efficiency of AdamW with compute-optimal training, by scaling-law experiments",
    cost="5 Newton-Schulz steps of at most 4 r^2 q + 2 r^3 FLOPs per r x q matrix; 4 bytes of state a parameter",
)
class Muon(StatefulOptimizer):
    """Momentum whose every step is replaced by its polar factor, so all directions of a matrix move alike.

    Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; Liu et al. (2025), arXiv:2502.16982. For a weight
    W [..., m, n] (rows are outputs; leading dimensions are a stack of matrices, as experts are kept) with gradient G:

        B <- mu B + (1 - mu) G;   D = mu B + (1 - mu) G if nesterov else B
        W <- (1 - lr weight_decay) W - lr scale U V^T,   where D = U S V^T

    scaling: 'spectral' (Jordan) is sqrt(max(1, m / n)), for which an lr near 0.02 suits most widths; 'rms' (Liu et al.)
    is 0.2 sqrt(max(m, n)), which takes an lr and weight decay tuned for AdamW. weight_decay: 0.01 is the value of
    Jordan's example, 2e-4 of a weight a step at the default lr. The polar factor is that of `polar_factor`. precision: of the
    orthogonalisation; 'auto' is bfloat16 where the device multiplies it in hardware. compile: orthogonalise through
    `torch.compile`; not for 'low_rank'. Matrices of one shape are orthogonalised as one batch. The momentum is float32 whatever the
    weights are. Differs from Jordan: convolution kernels are taken as stacks and not flattened.

    polar = 'low_rank' orthogonalises D in its rank + oversampling leading directions alone, found by a random sketch
    with `power` passes (Choudhury et al. (2026), Muon with Nesterov Momentum: Heavy-Tailed Noise and (Randomized)
    Inexact Polar Decomposition, arXiv:2605.06884). The sketch is drawn from `seed` and the number of steps, which the
    group counts in `sketches`. `polar_report` says how near a method comes, and how fast.

    rank: leading directions that 'low_rank' orthogonalises.
    oversampling: further directions of its sketch.
    power: passes of its sketch over the matrix.
    Raises: ValueError for a parameter that is no matrix.
    """

    accepts = frozenset({"matrix"})
    stackwise = True
    orthogonal_updates = True

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 0.02,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        weight_decay: NonNegative = 0.01,
        scaling: Literal["spectral", "rms"] = "spectral",
        polar: PolarMethod = "jordan",
        steps: Iterations = 5,
        precision: Precision = "auto",
        compile: bool = False,
        rank: Count = 64,
        oversampling: Whole = 8,
        power: Whole = 1,
        seed: Seed = 0,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        defaults |= {"scaling": scaling, "polar": polar, "steps": steps, "precision": precision}
        defaults |= {"rank": rank, "oversampling": oversampling, "power": power, "seed": seed, "sketches": 0}
        if compile and polar == "low_rank":
            raise ValueError("muon: compile = True does not go with polar = 'low_rank', whose QR is not compiled")
        super().__init__(parameters, defaults)
        self._polar_factor = torch.compile(polar_factor, dynamic=False) if compile else polar_factor

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: float32 momentum."""
        return sum(4 * parameter.numel() for parameter in parameters)

    def step_flops(self) -> int:
        """Operations of one step: the orthogonalisations."""
        total = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                rows, columns = parameter.shape[-2:]
                each = polar_flops(rows, columns, method=group["polar"], steps=group["steps"], sketch=_sketch(group))
                total += each * (parameter.numel() // (rows * columns))
        return total

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these matrices, those of one shape together."""
        alike: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            alike[parameter.shape[-2:], parameter.dtype, parameter.device].append(parameter)
        for same in alike.values():
            for batch in _batches(same):
                self._move(batch, group)
        if group["polar"] == "low_rank":
            group["sketches"] += 1

    def _move(self, parameters: list[Tensor], group: Mapping[str, Any]) -> None:
        """One step of parameters whose matrices share a shape, a type and a device."""
        rows, columns = parameters[0].shape[-2:]
        device = parameters[0].device
        precision = _precision(device, group)
        directions = [each.reshape(-1, rows, columns) for each in self._directions(parameters, group)]
        counts = [len(each) for each in directions]
        stack = torch.empty((sum(counts), rows, columns), dtype=precision, device=device)
        torch._foreach_copy_(list(stack.split(counts)), directions)
        sketch = _sketch(group)
        factor = self._polar_factor(
            stack, method=group["polar"], steps=group["steps"], precision=precision, sketch=sketch
        )
        spectral = group["scaling"] == "spectral"
        scale = math.sqrt(max(1, rows / columns)) if spectral else 0.2 * math.sqrt(max(rows, columns))
        parts = factor.float().mul_(scale).split(counts)
        updates = [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
        decoupled_step(parameters, updates, lr=group["lr"], weight_decay=group["weight_decay"])

    def _directions(self, parameters: list[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
        """The momentum moved by each gradient, as it is to be orthogonalised; float32."""
        gradients, momenta = float_gradients(parameters), self.moments(parameters, "momentum")
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, momenta, group["momentum"])) if group["nesterov"] else momenta

    @torch.no_grad()
    def polar_report(self) -> list[PolarReport]:
        """How far the polar factors of the present momenta are from the exact ones and how long they take, by shape.

        It takes at most BATCH elements of a shape. Raises: ValueError before the first step.
        """
        reports = []
        for group in self.param_groups:
            alike: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if "momentum" in self.state[parameter]:
                    alike[parameter.shape[-2:], parameter.device].append(self.state[parameter]["momentum"])
            for (shape, device), momenta in alike.items():
                stack = torch.cat([momentum.reshape(-1, *shape) for momentum in next(_batches(momenta))])
                options = {"method": group["polar"], "steps": group["steps"], "sketch": _sketch(group)}
                reports.append(polar_report(stack, precision=_precision(device, group), **options))
        if not reports:
            raise ValueError("muon has no momentum yet: take a step first")
        return reports


def _precision(device: torch.device, group: Mapping[str, Any]) -> torch.dtype:
    return fast_precision(device) if group["precision"] == "auto" else getattr(torch, group["precision"])


def _sketch(group: Mapping[str, Any]) -> Sketch | None:
    """What the next step draws; None for a method that draws nothing."""
    if group["polar"] != "low_rank":
        return None
    seed = (group["seed"] * 1_000_003 + group["sketches"]) % 2**63
    return Sketch(rank=group["rank"], oversampling=group["oversampling"], power=group["power"], seed=seed)


def _batches(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """`parameters` in order, at most BATCH elements at a time: it bounds the memory a step takes beside its state."""
    limit = BATCH.get(parameters[0].device.type, BATCH["other"])
    batch: list[Tensor] = []
    for parameter in parameters:
        if batch and sum(each.numel() for each in batch) + parameter.numel() > limit:
            yield batch
            batch = []
        batch.append(parameter)
    yield batch
