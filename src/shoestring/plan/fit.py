"""The fitter of laws: many robust least-squares problems side by side, each watched until it has converged.

A problem is a row of `weights`. A start, a resample or a set of runs below a compute cut are the same formula with other
weights, and all of them descend at the same time. The Levenberg-Marquardt method needs no learning rate, and its end is
told by the gradient. The usual quasi-Newton defaults look at small changes of the error, stop in the long flat valleys of
these laws, and say nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
"""Variables [problems, 1 or n, p] -> expected values [problems, n], on the scale on which residuals are taken. Each value depends
on its own run and problem alone."""

CONVERGED = 1e-6
"""The largest cosine between the residuals and a column of the Jacobian at which a problem is done."""

STOPPED = 1e-3
"""The cosine above which a fit is told to have stopped early."""

SAME = 1e-4
"""Relative difference of two errors that are the same minimum."""

BEYOND = 1e-3
"""What a residual beyond delta still adds to the curvature, so that no variable is without any."""

LEAST_DAMPING, MOST_DAMPING = 1e-12, 1e12

GIVEN_UP, FAR = 60, 100.0
"""Steps after which a start is given up whose error is so many times the lowest of its rivals, and one unit of delta²: it creeps
along a valley that leads nowhere."""


class Box(NamedTuple):
    """Where variables may lie, and what is known of them before; each [p] or [problems, p].

    A prior adds (tightness (z - centre))² / 2 to the error; tightness 0 knows nothing.
    """

    low: Tensor
    high: Tensor
    centre: Tensor
    tightness: Tensor

    def rows(self, problems: int) -> "Box":
        """The same for each problem."""
        return Box(*(part.expand(problems, -1) for part in self))

    def of(self, which: Tensor) -> "Box":
        """Of some problems."""
        return Box(*(part[which] for part in self))


@dataclass(frozen=True)
class Descent:
    """Where each problem ended.

    variables: [problems, p].
    errors: [problems], sums of weighted Huber losses in units of delta², priors included.
    slopes: [problems], the largest cosine between the residuals and a free column of the Jacobian: 0 at a minimum.
    steps: that were taken.
    """

    variables: Tensor
    errors: Tensor
    slopes: Tensor
    steps: int

    @property
    def stopped_early(self) -> Tensor:
        """[problems], whether each ended where the error still falls."""
        return ~(self.slopes <= STOPPED)

    def best(self) -> int:
        """The problem of the lowest error."""
        return int(torch.where(self.errors.isfinite(), self.errors, torch.inf).argmin())

    def agreeing(self) -> int:
        """How many problems reached the lowest error."""
        lowest = float(self.errors[self.best()])
        return int((self.errors <= lowest + SAME * (abs(lowest) + 1e-9)).sum())


def jacobian(predict: Predict, variables: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(values [problems, n], their derivatives by the variables [problems, n, p]), by automatic differentiation.

    Each value depends on its own run and problem alone. So with variables of its own for each of them, one backward pass gives
    all derivatives.
    """
    with torch.enable_grad():
        apart = variables.detach()[:, None, :].repeat(1, n, 1).requires_grad_()
        values = predict(apart)
        (slopes,) = torch.autograd.grad(values.sum(), apart, materialize_grads=True)
    return values.detach(), slopes


def gradient_error(predict: Predict, variables: Tensor, n: int, step: float = 1e-5) -> float:
    """The largest difference between derivatives and central finite differences, relative to the largest of its column.

    variables: [problems, p].
    """
    _, exact = jacobian(predict, variables, n)
    worst = 0.0
    for which in range(variables.shape[-1]):
        move = torch.zeros_like(variables)
        move[:, which] = step
        found = (predict((variables + move)[:, None]) - predict((variables - move)[:, None])) / (2 * step)
        off = (found - exact[..., which]).abs().max() / found.abs().max().clamp(min=1e-4)
        worst = max(worst, float(off))
    return worst


def huber(residuals: Tensor, delta: Tensor) -> Tensor:
    """Huber's loss in units of delta²: r² / 2 below delta, straight above."""
    size = residuals.abs() / delta
    return torch.where(size <= 1, size**2 / 2, size - 0.5)


def descend(
    predict: Predict,
    starts: Tensor,
    targets: Tensor,
    weights: Tensor,
    box: Box,
    delta: Tensor | float,
    *,
    most_steps: int = 400,
    tolerance: float = CONVERGED,
    rivals: bool = False,
) -> Descent:
    """Minimise sum_i w_i Huber_delta(f_i(z) - y_i), and priors, for each problem, z within the box.

    starts: [problems, p].
    targets: [n] or [problems, n].
    weights: [problems, n], 0 for a run that a problem does not see.
    delta: [problems, 1] or a number, on the scale of the residuals.
    most_steps: after which what is not done is told by `Descent.stopped_early`.
    tolerance: the cosine at which a problem is done.
    rivals: whether the problems are one problem from several starts, of which only the best matter.
    """
    problems = len(starts)
    box, targets = box.rows(problems), targets.expand(problems, weights.shape[1])
    delta = torch.as_tensor(delta, dtype=starts.dtype).expand(problems, 1)
    z = torch.minimum(torch.maximum(starts, box.low), box.high)
    damping = torch.full((problems, 1), 1e-3, dtype=z.dtype)
    errors = _errors(predict, z, targets, weights, box, delta)
    waiting, steps = torch.arange(problems), 0
    while steps < most_steps and len(waiting):
        steps += 1
        at, w, d, aim, inside = z[waiting], weights[waiting], delta[waiting], targets[waiting], box.of(waiting)
        g, h, slope = _normal(predict, at, aim, w, inside, d, curved=steps % 2 == 0)
        free = ~_held(at, g, inside)
        move = _step(g, h, free, damping[waiting])
        tried = torch.minimum(torch.maximum(at + move, inside.low), inside.high)
        before, found = errors[waiting], _errors(predict, tried, aim, w, inside, d)
        better = found < before
        z[waiting] = torch.where(better[:, None], tried, at)
        errors[waiting] = torch.where(better, found, before)
        damping[waiting] = (damping[waiting] * torch.where(better[:, None], 0.2, 6.0)).clamp(
            LEAST_DAMPING, MOST_DAMPING
        )
        stuck = ~better & (damping[waiting][:, 0] >= MOST_DAMPING)
        done = (slope <= tolerance) | stuck | (errors[waiting] < 1e-20)
        if rivals and steps >= GIVEN_UP:
            done |= errors[waiting] > FAR * (errors.min() + 1)
        waiting = waiting[~done]
    slopes = _normal(predict, z, targets, weights, box, delta)[2]
    return Descent(z, errors, torch.where(errors < 1e-12, torch.zeros_like(slopes), slopes), steps)


def _held(z: Tensor, gradient: Tensor, box: Box) -> Tensor:
    """Which variables a bound holds back."""
    return ((z <= box.low) & (gradient > 0)) | ((z >= box.high) & (gradient < 0)) | (box.low == box.high)


def _step(g: Tensor, h: Tensor, free: Tensor, damping: Tensor) -> Tensor:
    mask = free.to(h.dtype)
    diagonal = h.diagonal(dim1=1, dim2=2)
    least = diagonal.amax(1, keepdim=True).clamp(min=1e-30) * 1e-12
    extra = torch.where(free, damping * torch.maximum(diagonal, least) + least, torch.ones_like(g))
    damped = h * mask[:, :, None] * mask[:, None, :] + torch.diag_embed(extra)
    return -torch.nan_to_num(torch.linalg.solve_ex(damped, (g * mask)[..., None])[0][..., 0])


def _errors(predict: Predict, z: Tensor, targets: Tensor, weights: Tensor, box: Box, delta: Tensor) -> Tensor:
    losses = weights * huber(predict(z[:, None]) - targets, delta)
    prior = ((box.tightness * (z - box.centre)) ** 2).sum(1) / 2
    found = torch.where(weights > 0, losses, torch.zeros_like(losses)).sum(1) + prior
    return torch.where(found.isfinite(), found, torch.inf)


def _normal(
    predict: Predict, z: Tensor, targets: Tensor, weights: Tensor, box: Box, delta: Tensor, curved: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient [problems, p], Gauss-Newton matrix [problems, p, p], cosines [problems]).

    curved: the matrix of the loss as it curves, to which residuals beyond delta add almost nothing. Steps by it end fast
    near a minimum where many residuals are beyond delta; steps by the other, in which they count by 1 / size, get there.
    """
    values, slopes = jacobian(predict, z, weights.shape[1])
    seen = weights > 0
    residuals = torch.where(seen, torch.nan_to_num((values - targets) / delta), torch.zeros_like(values))
    slopes = torch.where(seen[..., None], torch.nan_to_num(slopes / delta[..., None]), torch.zeros_like(slopes))
    counted = weights / residuals.abs().clamp(min=1)
    moved = box.tightness * (z - box.centre)
    g = torch.einsum("rn,rnp->rp", counted * residuals, slopes) + box.tightness * moved
    bent = torch.where(residuals.abs() <= 1, weights, BEYOND * counted) if curved else counted
    h = torch.einsum("rn,rnp,rnq->rpq", bent, slopes, slopes) + torch.diag_embed(box.tightness**2)
    size = ((counted * residuals**2).sum(1) + (moved**2).sum(1)).sqrt()
    length = torch.einsum("rn,rnp->rp", counted, slopes**2).sqrt()
    length = torch.maximum(length, box.tightness)
    cosines = g.abs() / (length * size[:, None]).clamp(min=1e-300)
    flat = length <= 1e-12 * length.amax(1, keepdim=True)
    cosines = torch.where(flat | _held(z, g, box), torch.zeros_like(cosines), cosines).amax(1)
    return g, h, torch.where(cosines.isfinite(), cosines, torch.full_like(cosines, math.inf))
