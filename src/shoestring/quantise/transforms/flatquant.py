"""FlatQuant: a learned invertible transform of what each layer reads, the Kronecker product of two small matrices."""

import logging

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.method import Iterations, Positive, Seed, method
from shoestring.quantise.format import CodeFormat, Encoded
from shoestring.quantise.kronecker import Kronecker, factors
from shoestring.quantise.parts import Over, Transform
from shoestring.quantise.transforms.hadamard import orthogonal

log = logging.getLogger(__name__)

ROWS = 512
"""Rows of a matrix that the transform is learned on, at most: an even draw."""


@method(
    "quantise",
    kind="transform",
    name="flatquant",
    paper="FlatQuant: Flatness Matters for LLM Quantization, arXiv:2410.09426",
    claim="less than 1% of accuracy lost by LLaMA-3-70B with weights and activations in 4 bits, 7.5% ahead of SpinQuant",
    cost="for each matrix `steps` roundings of up to 512 of its rows; where the model runs a + b products for each number read",
)
class FlatQuant(Transform):
    """Learn, layer by layer, the transform with which rounding spoils the least of what the layer gives.

    Sun et al. (2024), arXiv:2410.09426. With P = A (x) B, Q the rounding to the nearest and H the mean of x x^T over what the
    layer reads:

        minimise tr(D H D^T) over A [a, a], B [b, b],    D = W - Q(W P^-T) P^T

    by Adam, gradients passing straight through Q's choice of codes (scales as they are at each step). A and B begin as rotations
    (the paper: as random orthogonal matrices); where learning helped nothing, the rotation stays, and learning ends at a step
    whose transform all but has no inverse. Differs: activations are not rounded while P is learned (`--activations token` rounds
    what P gives afterwards) and ranges not learned; the paper transforms queries, keys and values by one P and fuses some of it
    into other layers; here every matrix has its own, done where the model runs.

    steps: of Adam. rate: of a step. seed: of the rotations and of the rows.
    """

    reads = True

    def __init__(self, *, steps: Iterations = 40, rate: Positive = 0.005, seed: Seed = 0) -> None:
        self.steps, self.rate, self.seed = steps, rate, seed

    def of_matrix(self, weight: Tensor, hessian: Tensor | None, format: CodeFormat, over: Over) -> Kronecker:
        """As `Transform.of_matrix`. Without a Hessian, or once the budget is spent: the rotation."""
        draw = torch.Generator().manual_seed(self.seed)
        first = Kronecker(*(orthogonal(size, draw) for size in factors(weight.shape[1])))
        if hessian is None:
            return first
        rows = torch.randperm(len(weight), generator=draw)[:ROWS].sort().values
        some, moments = weight[rows], hessian / hessian.diagonal().mean().clamp_min(1e-30)
        left, right = first.left.clone().requires_grad_(), first.right.clone().requires_grad_()
        optimiser = torch.optim.Adam([left, right], lr=self.rate)
        best, least = first, float("inf")
        for step in range(self.steps + 1):
            if over():
                break
            with torch.enable_grad():
                try:
                    turned = _turned(some, left, right)
                    nearest = _nearest(turned.detach(), format)
                except (ShoestringError, torch.linalg.LinAlgError):
                    log.warning(
                        "flatquant: a step led to a transform that all but has no inverse; the best of %d stays", step
                    )
                    break
                rounded = turned + (nearest - turned).detach()
                off = Kronecker(left, right).transposed.times(rounded) - some
                loss = ((off @ moments) * off).sum()
                if float(loss.detach()) < least:
                    best, least = Kronecker(left.detach().clone(), right.detach().clone()), float(loss.detach())
                if step == self.steps:
                    break
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
        return best


def _turned(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """W P^-T, with gradients."""
    return Kronecker(torch.linalg.inv(left).T, torch.linalg.inv(right).T).times(weight)


def _nearest(weight: Tensor, format: CodeFormat) -> Tensor:
    """What the weights are rounded to."""
    found: Encoded = format.encode(weight)
    return found.plain()
