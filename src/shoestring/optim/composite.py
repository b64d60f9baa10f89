"""Several optimisers as one, and the learning rates of any optimiser scaled by a schedule's factor."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from shoestring.optim.curvature import Curvature
from shoestring.optim.unguarded import Unguarded


class Composite(Unguarded):
    """Several optimisers that step, save and load as one `torch.optim.Optimizer`.

    `param_groups` and `state` are read live from the parts, so a schedule may set `lr` in each group; every group has
    `base_lr`, the learning rate it was made with. The saved state has torch's own layout, the groups of all parts in
    order.

    Raises: ValueError where two parts share a parameter, or where only some name their parameters.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        groups = [group for part in parts for group in part.param_groups]
        for group in groups:
            group.setdefault("base_lr", group["lr"])
        super().__init__(groups, {})
        # From here on __getattr__ reads both from the parts, which own them and replace them when they load.
        del self.param_groups, self.state

    def __getattr__(self, name: str) -> Any:
        if name == "param_groups":
            return [group for part in self.parts for group in part.param_groups]
        if name == "state":
            return {parameter: state for part in self.parts for parameter, state in part.state.items()}
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every part. Raises: ValueError for a closure, which each part would have to call anew."""
        if closure is not None:
            raise ValueError("a composite optimiser takes no closure: compute the gradients, then call step()")
        for part in self.parts:
            part.step()

    def step_flops(self) -> int:
        """Operations of one step: those of the parts that say (`step_flops`); element-wise work is not counted."""
        return sum(part.step_flops() for part in self.parts if hasattr(part, "step_flops"))

    def wants_curvature(self) -> bool:
        """Whether any part asks for second derivatives before the next step."""
        return any(part.wants_curvature() for part in self.parts if hasattr(part, "wants_curvature"))

    def observe(self, curvature: Curvature) -> None:
        """Let the parts that ask for second derivatives take them."""
        part: Any
        for part in self.parts:
            if hasattr(part, "wants_curvature") and part.wants_curvature():
                part.observe(curvature)

    @property
    def state_holds_weights(self) -> bool:
        """Whether the state of any part has weights of its own; one of another's making that has `eval` swaps them."""
        return any(getattr(part, "state_holds_weights", hasattr(part, "eval")) for part in self.parts)

    @property
    def orthogonal_updates(self) -> bool:
        """Whether any part moves matrices by polar factors."""
        return any(getattr(part, "orthogonal_updates", isinstance(part, torch.optim.Muon)) for part in self.parts)

    def anchor(self) -> None:
        """Have each part that can take what it takes from the first weights."""
        for part in self.parts:
            if hasattr(part, "anchor"):
                part.anchor()

    def forget(self, parameter: Tensor) -> None:
        """Empty the state of a parameter whose weights were set by another."""
        for part in self.parts:
            if hasattr(part, "forget"):
                part.forget(parameter)
            else:
                part.state.get(parameter, {}).clear()

    def eval(self) -> None:
        """Put the weights that are to be judged and kept in place, where a part trains on others (Schedule-Free)."""
        for part in self.parts:
            if hasattr(part, "eval"):
                part.eval()

    def train(self) -> None:
        """Put the weights that are trained on back."""
        for part in self.parts:
            if hasattr(part, "train"):
                part.train()

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """`eval` and `train` around a block."""
        self.eval()
        try:
            yield
        finally:
            self.train()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for part in self.parts:
            saved = part.state_dict()
            state |= {first + index: values for index, values in saved["state"].items()}
            groups += [{**g, "params": [first + index for index in g["params"]]} for g in saved["param_groups"]]
            first += sum(len(group["params"]) for group in part.param_groups)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Give each part its groups. Raises: ValueError, before anything is loaded, where the groups do not match."""
        groups, state = state_dict["param_groups"], state_dict["state"]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the loaded state dict has other parameter groups than this composite optimiser")
        first = 0
        for part in self.parts:
            own = groups[first : first + len(part.param_groups)]
            first += len(own)
            indices = [index for group in own for index in group["params"]]
            part.load_state_dict({"param_groups": own, "state": {i: state[i] for i in indices if i in state}})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once built: a new group belongs to one of the parts. Raises: ValueError."""
        if "param_groups" not in vars(self):
            raise ValueError("add the group to one of the parts of the composite optimiser")
        super().add_param_group(param_group)


def scale_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set `lr` = `base_lr` * `factor` in every group; a group without `base_lr` takes its present `lr` for it."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * factor
