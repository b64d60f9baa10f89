"""A part's weights and its optimiser's state as named tensors and JSON values, to be sent or written, and put back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.sync.merging import weighted_average

WEIGHT, STATE = "weight.", "state."
Values = dict[str, Any]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers by name, sharing the module's memory."""
    return {WEIGHT + name: tensor for name, tensor in module.state_dict().items()}


def optimizer_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Values]:
    """The optimiser's tensors by 'state.INDEX.KEY', and everything else as JSON values.

    Raises: ShoestringError for state that is neither a tensor nor a plain value.
    """
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: list[list[Any]] = []
    for index, entries in saved["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{STATE}{index}.{key}"] = value
            elif value is None or isinstance(value, (bool, int, float, str)):
                plain.append([index, key, value])
            else:
                raise ShoestringError(
                    f"the optimiser's state '{key}' is a {type(value).__name__}, which cannot be kept"
                )
    groups = [{k: v for k, v in group.items() if k != "params"} for group in saved["param_groups"]]
    return tensors, {"plain": plain, "groups": groups}


def restore(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Values | None
) -> None:
    """Put `tensors` into the module and, where `values` is given, into the optimiser too.

    Raises: ShoestringError where they are another model's.
    """
    weights = {name.removeprefix(WEIGHT): t for name, t in tensors.items() if name.startswith(WEIGHT)}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ShoestringError(f"these weights are another stage's or another model's: {reason}") from None
    if values is None:
        return
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith(STATE):
            index, _, key = name.removeprefix(STATE).partition(".")
            state.setdefault(int(index), {})[key] = tensor
    for index, key, value in values["plain"]:
        state.setdefault(index, {})[key] = value
    present = optimizer.state_dict()["param_groups"]
    # JSON has no tuples
    groups = [
        {key: _like(old.get(key), value) for key, value in new.items()} | {"params": old["params"]}
        for old, new in zip(present, values["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _like(old: Any, value: Any) -> Any:
    return tuple(value) if isinstance(old, tuple) else value


def inherited(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """What a part takes over from those whose `states` these are: from one, all that it is given; from several, the
    `merging.weighted_average`, equal parts where all weights are 0. Raises: UsageError where they differ in shape."""
    if len(states) == 1:
        return dict(states[0])
    return weighted_average(states, weights if any(weights) else None)
