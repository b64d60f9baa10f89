"""A small feed-forward layer beside the big one: each token takes one of them, or neither."""

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.contract.model import LOSS, Notes
from shoestring.method import NonNegative, method
from shoestring.model.routing import Gate
from shoestring.model.swiglu import SwiGLU

Way = Literal["router", "chance", "skip", "small", "big"]
SKIP, SMALL, BIG = range(3)
FIXED: dict[str, int] = {"skip": SKIP, "small": SMALL, "big": BIG}


@method(
    "model",
    kind="channel mixer",
    name="duo",
    paper="Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models, arXiv:2410.10846",
    claim="oracles that choose a module for each token and layer show that trained routers are far from the best: one big module "
    "in a single layer can do better than big ones in all",
    cost="a router; while training both modules, else the one that a token takes",
)
class DuoFeedForward(nn.Module):
    """A router says for each token whether the big layer, the small one, or none is added.

    Keivan Alizadeh et al., 2024, arXiv:2410.10846.

        p = softmax(W x) over (skip, small, big),   n = argmax p,   y = f_n(x),   f_skip = 0,   f: SwiGLU
        loss: price mean(p_small c + p_big),   c: the small one's hidden features over the big one's

    The gradient goes to p as if y = sum_n p_n f_n(x), so all modules are computed while training. By chance ('chance'), the way is
    a hash of the token's features: as even as a draw, and the same whenever the token is read. Train so first, then the router
    alone; `model.routing_oracle` tells how far it is from the best.

    x: [B, T, width] -> ([B, T, width], notes): 'load' [3], tokens that took each way.

    Cost: without a backward pass it depends on the text; the most that it can be is stated then.
    Different from the paper: its routers could not be checked; here they are one matrix, with a straight-through gradient.

    small: hidden features of the small layer, as a share. way: who chooses: the router, chance, or the same way for all.
    skip: whether tokens may take neither. price: coefficient of the term of the loss.
    """

    expansion = 8 / 3
    tells = True
    compiles = False

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        small: Annotated[float, Interval(gt=0, lt=1)] = 0.125,
        way: Way = "router",
        skip: bool = True,
        price: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        self.way, self.price, self.first = way, price, SKIP if skip else SMALL
        self.big = SwiGLU(width, hidden)
        self.small = SwiGLU(width, max(1, round(small * hidden)))
        self.router = Gate(width, 3)
        self.register_buffer("chance", torch.randn(width))
        self.chance: Tensor

    @property
    def output(self) -> nn.Linear:
        """Of the big layer."""
        return self.big.output

    def silence(self) -> None:
        """The small layer begins silent too."""
        nn.init.zeros_(self.small.output.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Notes]:
        """As the class says."""
        flat = x.flatten(0, -2)
        if self.way in FIXED:
            ways = torch.full((len(flat),), FIXED[self.way], device=x.device)
            return self._chosen(flat, ways).view(x.shape), {"load": ways.bincount(minlength=3)}
        shares = self._shares(flat)
        ways = self._by_chance(flat) if self.way == "chance" else shares.argmax(-1)
        notes: Notes = {"load": ways.bincount(minlength=3)}
        if not (self.training and torch.is_grad_enabled()):
            return self._chosen(flat, ways).view(x.shape), notes
        weights = F.one_hot(ways, 3).to(shares)
        if self.way == "router":
            weights = weights + shares - shares.detach()
            if self.price:
                size = self.small.output.in_features / self.big.output.in_features
                notes[f"{LOSS}price"] = self.price * (shares[:, SMALL] * size + shares[:, BIG]).mean()
        small, big = self.small(flat), self.big(flat)
        weights = weights.to(big.dtype)
        return (weights[:, SMALL, None] * small + weights[:, BIG, None] * big).view(x.shape), notes

    def _shares(self, flat: Tensor) -> Tensor:
        scores: Tensor = self.router(flat)
        if self.first == SMALL:
            scores = scores.index_fill(-1, torch.tensor([SKIP], device=scores.device), float("-inf"))
        return scores.softmax(-1)

    def _by_chance(self, flat: Tensor) -> Tensor:
        wide = torch.promote_types(flat.dtype, torch.float32)
        drawn = ((flat.detach().to(wide) * self.chance.to(wide)).sum(-1) * 1000).remainder(1)
        return self.first + (drawn * (3 - self.first)).long().clamp_max(2 - self.first)

    def _chosen(self, flat: Tensor, ways: Tensor) -> Tensor:
        """Each token by its own way, and nothing else."""
        found = torch.zeros_like(flat)
        for way, layer in ((SMALL, self.small), (BIG, self.big)):
            places = (ways == way).nonzero()[:, 0]
            if len(places) == len(flat):
                return layer(flat)
            if len(places):
                made = layer(flat[places])
                found = found.to(made.dtype).index_copy(0, places, made)
        return found

    def way_flops(self) -> tuple[int, int, int]:
        """Operations of a token, forward, by its way: skip, small, big. The router's are not among them."""
        one = Shape(1, 1)
        return 0, self.small.flops(one, False), self.big.flops(one, False)

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: the big layer's hidden features, and the width that it reads and writes."""
        (width, hidden), (other, _) = self.big.axes(), self.small.axes()
        slices = [one._replace(name=f"big.{one.name}") for one in width.slices]
        slices += [one._replace(name=f"small.{one.name}") for one in other.slices]
        slices += [Slice("router.weight", 1), Slice("chance", 0)]
        inner = tuple(one._replace(name=f"big.{one.name}") for one in hidden.slices)
        return (Axis("width", None, width.size, tuple(slices)), Axis("hidden", None, hidden.size, inner))

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        if self.way in FIXED:
            layer = (None, self.small, self.big)[FIXED[self.way]]
            return 0 if layer is None else layer.flops(shape, inputs)
        learns = self.way == "router"
        total = cost.linear(self.router, shape.tokens, shape.backward and learns, inputs)
        if shape.backward:
            total += self.small.flops(shape, inputs)
        return total + self.big.flops(shape, inputs)
