"""Normalize-and-Project: matrices of a fixed norm, and norms behind them, so that the schedule alone says how fast they turn."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.method import Positive, method
from shoestring.surgery.norm_readers import norm_readers

RATE = "effective_rate"


class NormedLinear(nn.Linear):
    """y_r = z_r / sqrt(mean(z_r²) + 1e-6), z = W x + b, of each branch r of rows.

    base: the linear layer whose place it takes. rows: of each branch, together all of them.
    """

    def __init__(self, base: nn.Linear, rows: tuple[int, ...]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.rows = base.in_features, base.out_features, rows
        self.weight, self.bias = base.weight, base.bias
        if hasattr(base, "row_blocks"):  # which rows are a head's, for optimisers
            setattr(self, "row_blocks", base.row_blocks)  # noqa: B010 (mypy forbids the plain form)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        parts = super().forward(x).split(self.rows, -1)
        return torch.cat([F.rms_norm(part, part.shape[-1:], eps=1e-6) for part in parts], -1)


@method(
    "surgery",
    kind="edit",
    name="normalize_and_project",
    paper="Normalization and effective learning rates in reinforcement learning, arXiv:2407.01800",
    claim="learning does not slow down as parameters grow, on changing tasks; on unchanging ones transformers and residual "
    "networks are as good as before, or slightly better",
    cost="a norm of every matrix and a copy of it at each step; a norm without a scale behind each matrix that is read first",
)
class NormalizeAndProject:
    """Keep the norm of each matrix of the layers as it began, and put norms where features go into something that is not linear.

    Clare Lyle et al., 2024, arXiv:2407.01800. After each step of the optimiser

        W <- W rho / |W|,   rho = |W| at the start (Frobenius, of each matrix of a stack)

    A matrix with a norm behind it has an effect that its size does not change, so that a larger one learns more slowly at the same
    rate. Held at rho, the schedule is the whole truth. `effective_rate`, logged with the loss, is how far the step before has moved
    a matrix, mean of |W' - W| / |W| over the matrices that are held.

    Here a matrix of zeros, on no sphere, gets rho = zero_radius sqrt(rows), and is held once it has grown that large. The norms
    have no scale. They stand behind the matrices that read the stream, by branch: queries, keys, values; gate and up. Embedding,
    head, scales and biases are not projected (the source also draws scales back to where they began).

    norms: whether norms are inserted, which changes what a trained model computes. zero_radius: as above.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, norms: bool = True, zero_radius: Positive = 0.1) -> None:
        self.norms, self.zero_radius = norms, zero_radius
        self._before: dict[str, Tensor] = {}

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Nothing is to be decided. Raises: UsageError where norms are wanted, and where they go is not known."""
        if self.norms:
            list(norm_readers(model, "normalize_and_project"))
        return Decision()

    @torch.no_grad()
    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with norms, and the radii of its matrices."""
        for _, name, starts in list(norm_readers(model, "normalize_and_project")) if self.norms else ():
            base: Any = model.get_submodule(name)
            ends = (*starts[1:], base.out_features)
            rows = tuple(end - start for start, end in zip(starts, ends, strict=True))
            model.set_submodule(name, NormedLinear(base, rows).train(base.training))
        for matrix in list(model.anatomy().matrices()):
            size = torch.linalg.vector_norm(matrix.weight.float(), dim=(-2, -1), keepdim=True)
            begun = torch.where(size > 0, size, self.zero_radius * matrix.weight.shape[-2] ** 0.5)
            owner = model.get_submodule(matrix.name)
            owner.register_buffer("radius", begun)
            owner.register_buffer("arrived", size > 0)
        model.register_buffer(RATE, torch.zeros((), device=model.device))
        model.changed()
        return model

    def before_step(self, model: LanguageModule, at: At) -> Charge:
        """As `Stepped.before_step`: the matrices as they are, to see how far the step goes."""
        self._before = {name: owner.weight.detach().clone() for name, owner in _projected(model)}
        return NOTHING

    @torch.no_grad()
    def after_step(self, model: LanguageModule, at: At) -> None:
        """As `Stepped.after_step`: each matrix is put back on its sphere."""
        moved = []
        for name, owner in _projected(model):
            weight, before = owner.weight, self._before[name]
            size = torch.linalg.vector_norm(weight.float(), dim=(-2, -1), keepdim=True).clamp_min(1e-12)
            held = owner.arrived[..., 0, 0].clone()  # one that was smaller has no rate yet
            owner.arrived.logical_or_(size >= owner.radius)
            weight.mul_(torch.where(owner.arrived, owner.radius / size, 1.0).to(weight.dtype))
            was = torch.linalg.vector_norm(before.float(), dim=(-2, -1)).clamp_min(1e-12)
            far = torch.linalg.vector_norm((weight - before).float(), dim=(-2, -1)) / was
            moved.append(far[held].flatten())
        self._before = {}
        rates = torch.cat(moved) if moved else torch.zeros(0)
        if len(rates):
            getattr(model, RATE).copy_(rates.mean())

    def figures(self, model: LanguageModule) -> Mapping[str, Tensor]:
        """As `Metered.figures`."""
        return {RATE: getattr(model, RATE)}

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model without radii. Raises: UsageError where norms were inserted."""
        if any(isinstance(module, NormedLinear) for module in model.modules()):
            raise UsageError("normalize_and_project: a matrix with a norm behind it computes more than one matrix can")
        for _, owner in list(_projected(model)):
            del owner.radius, owner.arrived
        delattr(model, RATE)
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        count = sum(1 for _ in _projected(model))
        normed = sum(isinstance(module, NormedLinear) for module in model.modules())
        return f"normalize_and_project: {count} matrices keep their norms, {normed} have a norm behind them"


def _projected(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules whose matrices are held, by name."""
    for name, module in model.named_modules():
        if "radius" in module._buffers and "arrived" in module._buffers:
            yield name, module
