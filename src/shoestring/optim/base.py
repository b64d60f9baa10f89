"""What the optimisers of this package share: a state that keeps its own types, and a step over the gradients there are."""

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from shoestring.optim.unguarded import Unguarded


class StatefulOptimizer(Unguarded):
    """A `torch.optim.Optimizer` whose subclass says how one group moves (`move`), without gradients being recorded.

    A state value keeps the type it was made with, float32 as a rule whatever the weights are; the base class of torch
    would cast it to the weights' type when it loads.

    accepts: the roles of parameters that the subclass takes. One that takes matrices alone raises ValueError for a parameter
    that is none (give it to another optimiser, as `partition` does).

    elementwise: whether each weight moves by its own gradient and state alone, so that any part of a parameter can be stepped
    without the rest. One that does not say so is given whole parameters (`parallel.optimizer`).
    stackwise: whether each matrix of a stack [.., m, n] moves by itself, so that a part of a stack can be stepped without the rest.

    What an outer loop, which sets weights between the steps, has to know (`sync.inner.InnerOptimizer`):
    state_holds_weights: whether the state has weights of its own, which would then stay behind. orthogonal_updates: whether
    it moves matrices by the polar factor of a momentum. anchored: the keys of the state that hold what is measured on the
    first weights, which `anchor` puts there and `forget` leaves.
    """

    accepts: ClassVar[frozenset[str]]
    elementwise: ClassVar[bool] = False
    stackwise: ClassVar[bool] = False
    state_holds_weights: ClassVar[bool] = False
    orthogonal_updates: ClassVar[bool] = False
    anchored: ClassVar[frozenset[str]] = frozenset()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if self.accepts != {"matrix"}:
            return
        group = self.param_groups[-1]
        names = group.get("param_names", range(len(group["params"])))
        for name, parameter in zip(names, group["params"], strict=True):
            if parameter.ndim < 2:
                self.param_groups.pop()
                kind, shape = type(self).__name__.lower(), tuple(parameter.shape)
                raise ValueError(f"{kind} takes matrices only: parameter {name} has shape {shape}")

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters of `group`, all of which have a gradient."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. Raises: ValueError for a closure."""
        if closure is not None:
            raise ValueError(f"{type(self).__name__} takes no closure: compute the gradients, then call step()")
        for group in self.param_groups:
            present = [parameter for parameter in group["params"] if parameter.grad is not None]
            if present:
                self.move(present, group)

    def moments(self, parameters: list[Tensor], key: str) -> list[Tensor]:
        """The float32 state tensor `key` of each parameter, shaped like it; zeros where there was none."""
        for parameter in parameters:
            if key not in self.state[parameter]:
                self.state[parameter][key] = torch.zeros_like(parameter, dtype=torch.float32)
        return [self.state[parameter][key] for parameter in parameters]

    def anchor(self) -> None:
        """Measure now what is taken from the first weights, of which most optimisers take nothing; else the first step does."""

    def forget(self, parameter: Tensor) -> None:
        """Empty the state of a parameter whose weights were set by another, save what `anchor` put there."""
        state = self.state.get(parameter, {})
        for key in state.keys() - self.anchored:
            del state[key]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's, but every tensor of the state keeps its saved type."""
        super().load_state_dict(dict(state_dict))
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        present = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(saved, present, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device)


def float_gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradient of each parameter in float32."""
    return [parameter.grad.float() for parameter in parameters if parameter.grad is not None]
