"""Matrices of one shape as one stack, the second moments of their two sides, and rotations by the eigenbases of these."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from shoestring.optim.base import StatefulOptimizer
from shoestring.optim.decoupled import decoupled_step
from shoestring.optim.uncompiled import uncompiled

STACK = 2**24
"""The most elements of weights in one stack: it bounds the memory a step takes beside its state."""

Sides = Mapping[str, Tensor]
"""A stack of square matrices [k, d, d] for 'left' (d = rows) and 'right' (d = columns), or for one of them, or none."""


class KroneckerOptimizer(StatefulOptimizer):
    """Steps matrices of one shape together; the subclass says along which `direction`.

    Leading dimensions of a parameter are a stack of matrices, as experts are kept. A state tensor is stored once for
    all matrices of a stack, and what `state` holds are views of it: no step copies the state together.

    Raises: ValueError for a parameter that is no matrix.
    """

    accepts = frozenset({"matrix"})

    def direction(
        self, parameters: list[Tensor], gradients: Tensor, step: int, group: Mapping[str, Any]
    ) -> Tensor | None:
        """Where the weights of these matrices go, [k, m, n], as W <- W - lr (direction + weight_decay W).

        gradients: [k, m, n], float32, or float64 where the weights are. step: from 1. None: the weights stay where they are.
        """
        raise NotImplementedError

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these matrices, those of one shape and one count of steps together."""
        alike: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            alike[state["step"], parameter.shape[-2:], parameter.dtype, parameter.device].append(parameter)
        for (step, *_), same in alike.items():
            for batch in _batches(same):
                self._move(batch, step, group)

    def _move(self, parameters: list[Tensor], step: int, group: Mapping[str, Any]) -> None:
        rows, columns = parameters[0].shape[-2:]
        matrices = [p.grad.reshape(-1, rows, columns) for p in parameters if p.grad is not None]
        counts = [len(each) for each in matrices]
        gradients = torch.empty((sum(counts), rows, columns), dtype=_wide(parameters[0]), device=parameters[0].device)
        torch._foreach_copy_(list(gradients.split(counts)), matrices)
        direction = self.direction(parameters, gradients, step, group)
        if direction is not None:
            parts = [part.reshape(p.shape) for part, p in zip(direction.split(counts), parameters, strict=True)]
            decoupled_step(parameters, parts, lr=group["lr"], weight_decay=group["weight_decay"])

    @uncompiled()
    def stack(self, parameters: list[Tensor], key: str, *shape: int) -> Tensor:
        """The state `key` of all matrices of these parameters, [k, *shape], wide as the gradients; zeros where there was none."""
        for parameter in parameters:
            if key not in self.state[parameter]:
                size = (*parameter.shape[:-2], *shape)
                self.state[parameter][key] = torch.zeros(size, dtype=_wide(parameter), device=parameter.device)
        parts = [self.state[parameter][key] for parameter in parameters]
        if len(parts) == 1:
            return parts[0].reshape(-1, *shape)
        whole = _whole(parts)
        if whole is None:  # at first, after loading, and where other parameters than before have a gradient
            whole = torch.cat([part.reshape(-1, *shape) for part in parts])
            views = whole.split([part.numel() // shape[0] // shape[1] for part in parts])
            for parameter, part, view in zip(parameters, parts, views, strict=True):
                self.state[parameter][key] = view.view(part.shape)
        return whole

    def sides(self, parameters: list[Tensor], suffix: str, max_side: int) -> dict[str, Tensor]:
        """The state 'left' + suffix and 'right' + suffix of these matrices, for each side that is not too long."""
        kept = kept_sides(parameters[0], max_side)
        return {side: self.stack(parameters, side + suffix, size, size) for side, size in kept.items()}


def _wide(weight: Tensor) -> torch.dtype:
    """float32, or float64 where the weights are: what is rounded at float32 can then be told from what is wrong."""
    return torch.promote_types(weight.dtype, torch.float32)


def kept_sides(matrix: Tensor, max_side: int) -> dict[str, int]:
    """The length of the left side (rows) and of the right side (columns), each unless it is over `max_side`."""
    rows, columns = matrix.shape[-2:]
    return {side: size for side, size in (("left", rows), ("right", columns)) if size <= max_side}


def state_bytes(parameters: Iterable[Tensor], max_side: int) -> int:
    """Bytes of two float32 tensors shaped as each weight and of two square ones for each side that is kept."""
    total = 0
    for parameter in parameters:
        rows, columns = parameter.shape[-2:]
        squares = sum(size**2 for size in kept_sides(parameter, max_side).values())
        total += 4 * 2 * (rows * columns + squares) * (parameter.numel() // (rows * columns))
    return total


def accumulate(factors: Sides, gradients: Tensor, beta: float) -> None:
    """L <- beta L + (1 - beta) G G^T on the left and R <- beta R + (1 - beta) G^T G on the right, in place."""
    for side, factor in factors.items():
        x, y = (gradients, gradients.mT) if side == "left" else (gradients.mT, gradients)
        factor.baddbmm_(x, y, beta=beta, alpha=1 - beta)


def rotate(x: Tensor, bases: Sides) -> Tensor:
    """Q_L^T X Q_R for each X of `x` [k, m, n]; a side without a basis is left as it is."""
    if "left" in bases:
        x = torch.bmm(bases["left"].mT, x)
    return torch.bmm(x, bases["right"]) if "right" in bases else x


def rotate_back(x: Tensor, bases: Sides) -> Tensor:
    """Q_L X Q_R^T for each X of `x` [k, m, n]: undoes `rotate`."""
    return rotate(x, {side: basis.mT for side, basis in bases.items()})


SHIFT = 64 * torch.finfo(torch.float32).eps
"""Of a factor, as a share of its size times its largest eigenvalue; see `refreshed_basis`."""


def eigenbasis(factors: Tensor) -> Tensor:
    """Orthonormal eigenvectors of each of `factors` [k, d, d] as columns, by falling eigenvalue.

    Where few gradients leave eigenvalues that rounding alone tells apart, any basis of that space would do, and the solver's is
    rounding too. Taken is the one that a fixed matrix makes there, so that two machines have the same.
    """
    values, vectors = torch.linalg.eigh(factors)
    values, vectors = values.flip(-1), vectors.flip(-1)
    told = (values > SHIFT * factors.shape[-1] * values[:, :1]).sum(-1).tolist()
    for basis, count in zip(vectors, told, strict=True):
        if 0 < count < len(basis):
            basis[:, count:] = _complement(basis[:, :count])
    return vectors


def _complement(basis: Tensor) -> Tensor:
    """[d, d - n]: orthonormal columns at right angles to those of `basis` [d, n], which depend on nothing but their span."""
    size, count = basis.shape
    fixed = torch.randn(size, size - count, generator=torch.Generator().manual_seed(0)).to(basis)
    q, r = torch.linalg.qr(torch.cat((basis, fixed), 1))
    return (q * r.diagonal().sign())[:, count:]


def refreshed_basis(factors: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """One step of orthogonal iteration of `factors` [k, d, d] from `bases`, and the order [k, d] of the old columns.

    The columns are put in the order of their estimated eigenvalues diag(Q^T F Q), falling, before Q <- qr((F + s I) Q): what
    belongs to old column order[i] belongs to new column i. The shift s = SHIFT d times the largest estimate leaves the
    eigenvectors what they are; those of eigenvalues far below it, which a few gradients do not tell, turn slowly instead of
    into noise, keep their order, and what is kept for them stays true. (heavyball 3.2 raises its factors alike.)
    """
    products = torch.bmm(factors, bases)
    estimates = (bases * products).sum(-2)
    shift = SHIFT * factors.shape[-1] * estimates.amax(-1)
    order = torch.argsort(estimates.maximum(shift[:, None]), dim=-1, descending=True, stable=True)
    products.add_(shift[:, None, None] * bases)
    sorted_products = products.gather(-1, order.unsqueeze(-2).expand_as(products))
    return torch.linalg.qr(sorted_products).Q, order


def inverse_root(factors: Tensor, root: int, damping: float) -> Tensor:
    """(F + damping s I)^(-1 / root) for each F of `factors` [k, d, d], s its largest eigenvalue; by eigenvectors.

    Where F is zero it stands for a tiny multiple of the identity.
    """
    values, vectors = torch.linalg.eigh(factors)
    values = values.clamp_min(0)  # rounding leaves some below zero
    values = values + damping * values[..., -1:] + TINY
    return torch.bmm(vectors * values.pow(-1 / root).unsqueeze(-2), vectors.mT)


TINY = 1e-30
"""Far below any factor that matters, and far enough from zero that two of its inverse square roots are finite."""


def _whole(parts: list[Tensor]) -> Tensor | None:
    """The tensor that these are, in order and completely, views of; None where there is no such tensor."""
    base = parts[0]._base
    if base is None or base.numel() != sum(part.numel() for part in parts):
        return None
    place = 0
    for part in parts:
        if part._base is not base or part.storage_offset() != place:
            return None
        place += part.numel()
    return base


def _batches(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """`parameters` in order, at most STACK elements at a time."""
    batch: list[Tensor] = []
    for parameter in parameters:
        if batch and sum(each.numel() for each in batch) + parameter.numel() > STACK:
            yield batch
            batch = []
        batch.append(parameter)
    yield batch
