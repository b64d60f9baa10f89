"""Which experts tokens go to: what a router says, and what routers share.

A registered method of kind 'router' is a subclass of `Router` with a constructor `(width, experts, *, options)`.
"""

import abc
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.model import LOSS, Notes
from shoestring.contract.role import ROUTER
from shoestring.errors import UsageError


class Routing(NamedTuple):
    """Which token goes to which expert, in order of the experts.

    tokens: [M] int64, places in the flat sequence of N tokens. weights: [M], what an expert's output is multiplied by.
    counts: [E] int64, how many of the M each expert has. notes: 'load', [E], and terms of the loss.
    """

    tokens: Tensor
    weights: Tensor
    counts: Tensor
    notes: Notes


class Router(nn.Module, abc.ABC):
    """Scores experts by one matrix, `gate` [E, width], whose product is taken in float32."""

    active: float
    """Experts that a token goes to, on the average."""
    looks_ahead: ClassVar[bool] = False
    """Whether where a token goes depends on later ones while it trains; without training it never does."""

    once: ClassVar[bool] = False
    """Whether what one layer's router says serves the layers after it too."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.gate = Gate(width, experts)
        self.leads = True
        """Whether it has a matrix, and does not follow another layer's router."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Routing:
        """x: [B, T, width], of N = B T tokens."""

    @property
    def least(self) -> float:
        """The fewest experts that there can be."""
        return self.active

    def resize(self, experts: int) -> None:
        """Told that its matrix has become one of so many experts. Raises: UsageError where a token goes to more."""
        if experts < self.least:
            raise UsageError(f"a token goes to {self.active:g} experts, so {experts} of a layer are too few")
        self.experts = experts

    def choose_more(self, times: int) -> None:
        """Have a token go to so many times the experts."""
        self.active *= times

    def taken(self, tokens: int, backward: bool) -> int:
        """Choices of so many tokens, the most that there can be. backward: whether it is training."""
        return round(tokens * self.active)

    def flops(self, shape: Shape, inputs: bool) -> int:
        """Operations of the scores."""
        return cost.linear(self.gate, shape.tokens, shape.backward, inputs)


class Gate(nn.Module):
    """The matrix of a router: no bias, and a product in float32 or finer under autocast too.

    It does not look like a linear layer, so that edits which lower or adapt those leave it alone. weight: [out, in].
    """

    roles: ClassVar[dict[str, str]] = {"weight": ROUTER}

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """As a linear layer: normal, of standard deviation 1 / sqrt(in)."""
        self.weight.normal_(std=self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., experts]."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.to(wide), self.weight.to(wide))

    def flops(self, tokens: int, backward: bool = False, inputs: bool = True) -> int:
        """As `contract.cost.linear`."""
        return cost.matrix_product(self.weight, tokens, backward, inputs)


def by_expert(chosen: Tensor, weights: Tensor, experts: int, notes: Notes) -> Routing:
    """The routing where each token has chosen experts.

    chosen: [N, k] int64. weights: [N, k].
    """
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts)
    notes = {"load": counts, **notes}
    return Routing(order // chosen.shape[1], weights.flatten()[order], counts, notes)


def z_loss(logits: Tensor) -> Tensor:
    """The mean of log² sum exp of the logits [N, E], which keeps them small. ST-MoE, arXiv:2202.08906."""
    return logits.logsumexp(-1).square().mean()


def losses(balance_term: Tensor | None, logits: Tensor, balance_weight: float, z_weight: float) -> Notes:
    """The terms of the loss, each with its coefficient; none for a coefficient of 0."""
    found: Notes = {}
    if balance_weight and balance_term is not None:
        found[f"{LOSS}balance"] = balance_weight * balance_term
    if z_weight:
        found[f"{LOSS}z"] = z_weight * z_loss(logits)
    return found
