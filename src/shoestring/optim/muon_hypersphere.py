"""Muon with every matrix held on a sphere of its own."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from shoestring.method import Decay, Iterations, NonNegative, Positive, method
from shoestring.optim.muon import Muon, Precision
from shoestring.optim.polar import fast_precision

ARRIVED = 0.99
"""The share of its radius from which a matrix counts as on its sphere; rounding to bfloat16 stays well within."""


@method(
    "optim",
    name="muon_hypersphere",
    paper="Rethinking Language Model Scaling under Transferable Hypersphere Optimization, arXiv:2603.28743; "
    "Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization, arXiv:2606.16899",
    claim="20 to 30 % token-equivalent speedup over weight-decay baselines, on Qwen3-style models up to 1.2 B; "
    "weight decay is a first-order no-op on the sphere",
    cost="as Muon, and two passes more over the weights; 4 bytes of state a parameter",
)
class MuonHypersphere(Muon):
    """Muon on the Frobenius sphere (MuonH): each step turns a matrix by about `lr` radians and keeps its norm.

    Wen et al. (2026), arXiv:2606.16899; Ren et al. (2026), arXiv:2603.28743. For a weight W [..., m, n] (leading
    dimensions are a stack of matrices, each on its own sphere) with gradient G, and |.| the Frobenius norm:

        B <- mu B + (1 - mu) G;   D = mu B + (1 - mu) G if nesterov else B
        V <- (1 - lr weight_decay) W - lr R O / |O|,   where O = U V^T is the polar factor of D = U S V^T
        W <- R V / |V|

    R: the norm the matrix has at the first step, or when `anchor` was called. A matrix of zeros, on no sphere, gets R =
    zero_radius sqrt(m), and so an output zero_radius times the size of its input; it takes the same steps, but keeps
    its own norm until it has grown to R (ours: neither paper starts from zeros). Those are what writes to the residual
    stream, and 0.1 suits a stream that begins with embeddings a little smaller. lr: a share of R, over all directions
    that O has: a gradient of rank k below min(m, n) moves its k directions the further. weight_decay has no effect to
    first order once W is on its sphere. The other options are those of `Muon`. Momentum and radii are float32 whatever
    the weights are. With the transfer rule 'hyperp' the learning rate carries over width, depth and tokens.

    Under an outer loop all workers keep the spheres of the first weights. What an outer step leaves is on none of them: a
    matrix outside is put back by the next inner step, one more than 1 % inside grows back by its steps, as one of zeros
    does.

    lr: the share of R that a step moves, about the angle in radians.
    zero_radius: R of a matrix of zeros, over sqrt(m).
    Raises: ValueError for a parameter that is no matrix (give it to another optimiser, as `partition` does).
    """

    accepts = frozenset({"matrix"})
    stackwise = False
    """Its state has a radius for each matrix, which is not of the parameter's shape."""
    refuses = frozenset({"adapter"})
    """An adapter begins at zero, and its size is what it learns: here the size of a matrix stays as it is."""
    anchored = frozenset({"radius"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 0.02,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        weight_decay: NonNegative = 0.0,
        zero_radius: Positive = 0.1,
        polar: Literal["jordan", "polar_express", "svd"] = "jordan",
        steps: Iterations = 5,
        precision: Precision = "auto",
        compile: bool = False,
    ) -> None:
        shared: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(parameters, **shared, polar=polar, steps=steps, precision=precision, compile=compile)
        self.defaults["zero_radius"] = zero_radius
        for group in self.param_groups:
            group.setdefault("zero_radius", zero_radius)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes: float32 momentum, and a float32 radius a matrix."""
        return sum(4 * (p.numel() + p.numel() // (p.shape[-2] * p.shape[-1])) for p in parameters)

    @torch.no_grad()
    def anchor(self) -> None:
        """Fix the radii from the weights as they are; those that are fixed already stay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                norms = torch.linalg.vector_norm(_stack([parameter]), dim=(-2, -1), keepdim=True)
                self._radii([parameter], norms, group["zero_radius"])

    def _move(self, parameters: list[Tensor], group: Mapping[str, Any]) -> None:
        weights = _stack(parameters)
        norms = torch.linalg.vector_norm(weights, dim=(-2, -1), keepdim=True)
        radii = self._radii(parameters, norms, group["zero_radius"])
        device = weights.device
        precision = fast_precision(device) if group["precision"] == "auto" else getattr(torch, group["precision"])
        directions = _stack(self._directions(parameters, group)).to(precision)
        factor = self._polar_factor(directions, method=group["polar"], steps=group["steps"], precision=precision)
        factor = factor.float()
        size = torch.linalg.vector_norm(factor, dim=(-2, -1), keepdim=True).clamp_min(1e-12)
        if group["weight_decay"]:
            weights.mul_(1 - group["lr"] * group["weight_decay"])
        weights.addcmul_(factor, radii / size * -group["lr"])
        back = radii / torch.linalg.vector_norm(weights, dim=(-2, -1), keepdim=True)
        weights.mul_(torch.where(norms >= ARRIVED * radii, back, back.clamp_max(1)))
        counts = [parameter.numel() // weights[0].numel() for parameter in parameters]
        moved = [part.view_as(parameter) for part, parameter in zip(weights.split(counts), parameters, strict=True)]
        torch._foreach_copy_(parameters, moved)

    def _radii(self, parameters: list[Tensor], norms: Tensor, zero_radius: float) -> Tensor:
        """The radius of each matrix, [stack, 1, 1]; fixed at the first step that a parameter takes, if not before."""
        rows, columns = parameters[0].shape[-2:]
        counts = [parameter.numel() // (rows * columns) for parameter in parameters]
        for parameter, norm in zip(parameters, norms.split(counts), strict=True):
            if "radius" not in self.state[parameter]:
                radius = torch.where(norm > 0, norm, zero_radius * rows**0.5)
                self.state[parameter]["radius"] = radius.view(*parameter.shape[:-2], 1, 1)
        return torch.cat([self.state[parameter]["radius"].view(-1, 1, 1) for parameter in parameters])


def _stack(matrices: list[Tensor]) -> Tensor:
    """A float32 copy of matrices, or stacks of them, of one shape as one stack [k, m, n]."""
    return torch.cat([matrix.reshape(-1, *matrix.shape[-2:]).float() for matrix in matrices])
