"""FRUGAL: Adam on a part of every gradient, the sign of the gradient on the rest."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.method import Count, Decay, Epsilon, Fraction, NonNegative, Positive, Seed, method
from shoestring.optim import frugal_selection
from shoestring.optim.base import StatefulOptimizer, float_gradients
from shoestring.optim.decoupled import decoupled_step
from shoestring.optim.frugal_selection import Selection, chosen_blocks, chosen_columns, density_within, upright
from shoestring.optim.uncompiled import uncompiled

DENSITY = 0.25


@method(
    "optim",
    name="frugal",
    paper="FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training, arXiv:2411.07837",
    claim="better than GaLore and BAdam at fixed memory budgets, in pre-training and fine-tuning",
    cost="2 bytes of state a matrix's parameter at the default density of 0.25; no products for 'columns' and 'blocks'",
)
class Frugal(StatefulOptimizer):
    """Adam on a chosen part of each matrix's gradient and signSGD on the rest, so every update has full rank.

    Zmushko et al. (2024), arXiv:2411.07837. For a weight W [..., m, n] with gradient G, where P projects onto the part
    that is chosen now and t counts the steps since it was:

        g = P(G);   a <- beta1 a + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g * g
        D = P^T((a / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)) + free_lr_ratio sign(G - P^T(P(G)))
        W <- W - lr (D + weight_decay W)

    selection: 'columns' takes a share `density` of the columns at random; 'random' and 'svd' project the shorter side
    onto that share of orthonormal directions, at random or the leading singular vectors of the gradient; 'blocks' takes
    whole weights at random until the share of all elements is full. every: after so many steps the choice is made
    anew, and a, v and t start again, as in the paper. free_lr_ratio: learning rate of signSGD over that of Adam; the
    paper pre-trains with 1 and fine-tunes with 0.1. state_bytes_budget: bytes; where it is not 0 the density is instead
    the largest at which the state of all weights fits (see `density_within`). seed: of the random choices, which
    depend on nothing else but the count of steps and the weight's place.

    Matrices only: as in the paper, embeddings, head and norms are left to AdamW. Leading dimensions are a stack of
    matrices, which share their columns. Differs from the paper: lr = 3e-3 (there 1e-3), beta2 = 0.95 (0.999) and
    weight_decay = 0.1 (0), as this library's AdamW has them; shares are rounded down. The state is float32 whatever
    the weights are.

    density: the share of each matrix that has Adam's state.
    Raises: ValueError for a parameter that is no matrix. UsageError for a budget that holds nothing.
    """

    accepts = frozenset({"matrix"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 3e-3,
        beta1: Decay = 0.9,
        beta2: Decay = 0.95,
        epsilon: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.1,
        density: Fraction = DENSITY,
        state_bytes_budget: Annotated[int, Interval(ge=0, le=2**50)] = 0,
        selection: Selection = "columns",
        every: Count = 200,
        free_lr_ratio: NonNegative = 1.0,
        seed: Seed = 0,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        defaults |= {"weight_decay": weight_decay, "density": density, "state_bytes_budget": state_bytes_budget}
        defaults |= {"selection": selection, "every": every, "free_lr_ratio": free_lr_ratio, "seed": seed, "step": 0}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these weights takes: two float32 moments of, and the numbers of, the columns."""
        return frugal_selection.state_bytes(list(parameters), "columns", DENSITY)

    def step_flops(self) -> int:
        """Operations of one step: the projections, there and back, and there again for what is left over."""
        total = 0
        for group in self.param_groups:
            if group["selection"] in ("random", "svd"):
                for parameter in group["params"]:
                    total += 6 * parameter.numel() * frugal_selection.count(min(parameter.shape[-2:]), group["density"])
        return total

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        budget, selection = group["state_bytes_budget"], group["selection"]
        if budget:  # it is for the weights of all groups together
            weights = [parameter for each in self.param_groups for parameter in each["params"]]
            for each in self.param_groups:
                each["density"] = density_within(budget, weights, selection)

    @uncompiled(recursive=False)  # what it calls is compiled; in it every new gradient would compile anew
    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these weights, of which a new part is chosen where it is time."""
        period = group["step"] // group["every"]
        group["step"] += 1
        stale = [parameter for parameter in parameters if self.state[parameter].get("period") != period]
        if stale:
            self._choose(stale, group, period)
        for parameter, gradient in zip(parameters, float_gradients(parameters), strict=True):
            direction = _direction(gradient, self.state[parameter], group)
            # detached: a compiled `decoupled_step` is then kept by shape, not by weight
            decoupled_step([parameter.detach()], [direction], lr=group["lr"], weight_decay=group["weight_decay"])

    @uncompiled()
    def _choose(self, parameters: list[Tensor], group: Mapping[str, Any], period: int) -> None:
        """Choose the part of these weights that Adam moves in this period, and start its moments at zero."""
        places = {parameter: place for place, parameter in enumerate(group["params"])}
        selection, density = group["selection"], group["density"]
        blocks: set[int] = set()
        if selection == "blocks":
            blocks = chosen_blocks((p.numel() for p in places), density, _generator(group["seed"], period, 0))
        for parameter in parameters:
            state, place = self.state[parameter], places[parameter]
            state.clear()
            state["period"], state["step"] = period, 0
            generator = _generator(group["seed"], period, place + 1)
            gradient = parameter.grad
            assert gradient is not None
            part = None
            if selection == "columns":
                state["columns"] = chosen_columns(parameter.shape[-1], density, generator).to(parameter.device)
            elif selection != "blocks":
                state["projection"] = frugal_selection.projection(gradient.float(), selection, density, generator)
            if selection != "blocks" or place in blocks:
                part = _down(gradient.float(), state)
                state["momentum"], state["second"] = torch.zeros_like(part), torch.zeros_like(part)


def _direction(gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    """D; the moments are moved."""
    ratio = group["free_lr_ratio"]
    if "momentum" not in state:
        return gradient.sign().mul_(ratio)
    state["step"] += 1
    part = _down(gradient, state)
    adam = _adam(part, state, group)
    if "columns" in state:
        return gradient.sign().mul_(ratio).index_copy_(-1, state["columns"], adam)
    if "projection" in state:
        rest = upright(gradient) - part @ state["projection"]
        moved = rest.sign_().mul_(ratio).add_(adam @ state["projection"])
        return moved.mT if gradient.shape[-2] < gradient.shape[-1] else moved
    return adam


def _down(gradient: Tensor, state: Mapping[str, Any]) -> Tensor:
    """P(G): the part of the gradient that is chosen."""
    if "columns" in state:
        return gradient.index_select(-1, state["columns"])
    if "projection" in state:
        return upright(gradient) @ state["projection"].mT
    return gradient


def _adam(part: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """Adam's direction for this part; its moments are moved."""
    beta1, beta2, step = group["beta1"], group["beta2"], state["step"]
    state["momentum"].lerp_(part, 1 - beta1)
    state["second"].mul_(beta2).addcmul_(part, part, value=1 - beta2)
    roots = (state["second"] / (1 - beta2**step)).sqrt_().add_(group["epsilon"])
    return roots.reciprocal_().mul_(state["momentum"]).div_(1 - beta1**step)


def _generator(seed: int, period: int, place: int) -> torch.Generator:
    """Of its own for each seed, period and place, so that a choice depends on these alone."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + period) * 1_000_003 + place) % 2**63)
