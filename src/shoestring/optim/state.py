"""An optimiser's state as flat named tensors and plain JSON values, and exactly back: nothing is ever unpickled."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.optim.composite import Composite

PARAMETERS = frozenset({"params", "param_names"})
FREE = frozenset({"base_lr"})
"""Options a group may have gained since it was made."""


def flatten_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of `optimizer` as tensors for a safetensors file, and the rest as values for a JSON file.

    A tensor is keyed 'PARAMETER.KEY', as in 'blocks.0.wo.weight.momentum'; the parameter's number stands for its name
    where the optimiser was given none. The tensors are the live ones: save or clone them before the next step.

    Raises: ShoestringError where an option or a state value is neither a tensor nor a plain value.
    """
    saved = optimizer.state_dict()
    names = _names(saved["param_groups"])
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, state in saved["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{names[index]}.{key}"] = value.detach().contiguous()
            else:
                values.setdefault(names[index], {})[key] = _plain(value, f"{names[index]}.{key}")
    groups = [
        {key: _plain(value, key) for key, value in group.items() if key not in PARAMETERS}
        for group in saved["param_groups"]
    ]
    record = {
        "optimizer": _kind(optimizer),
        "parameters": _parameters(optimizer),
        "groups": groups,
        "values": values,
        "tensors": {key: _signature(tensor) for key, tensor in tensors.items()},
    }
    return tensors, record


def restore_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    """Put back what `flatten_state` gave, exactly; the tensors are copied, one after the other.

    Raises: ShoestringError, before anything is changed, where the optimiser, its groups, the names or shapes of its
    parameters, or the tensors are not those of the record.
    """
    lost = {"optimizer", "parameters", "groups", "values", "tensors"} - record.keys()
    if lost:
        raise ShoestringError(f"the record of the optimiser state is damaged: it has no {', '.join(sorted(lost))}")
    current = optimizer.state_dict()["param_groups"]
    _same("the optimiser", record["optimizer"], _kind(optimizer))
    _same("the number of parameter groups", len(record["groups"]), len(current))
    for place, (was, now) in enumerate(zip(record["parameters"], _parameters(optimizer), strict=True)):
        _same(f"in parameter group {place}", was, now)
    for place, (was, now) in enumerate(zip(record["groups"], current, strict=True)):
        options = (dict.fromkeys(sorted(keys - FREE - PARAMETERS), "an option") for keys in (was.keys(), now.keys()))
        _same(f"in parameter group {place}", *options)
        _same(f"the role of parameter group {place}", was.get("role"), now.get("role"))
    copies = {key: tensor.clone() for key, tensor in tensors.items()}
    _same("among the tensors,", record["tensors"], {key: _signature(tensor) for key, tensor in copies.items()})

    index = {name: number for number, name in _names(current).items()}
    state: dict[int, dict[str, Any]] = {index[name]: dict(values) for name, values in record["values"].items()}
    for key, tensor in copies.items():
        name, _, field = key.rpartition(".")
        state.setdefault(index[name], {})[field] = tensor
    groups = [
        {**now, **{key: _as(now.get(key), value) for key, value in was.items()}}
        for was, now in zip(record["groups"], current, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _kind(optimizer: torch.optim.Optimizer) -> str:
    parts = optimizer.parts if isinstance(optimizer, Composite) else (optimizer,)
    return "+".join(type(part).__name__ for part in parts)


def _names(groups: list[dict[str, Any]]) -> dict[int, str]:
    """The name of each parameter number of a state dict."""
    found: dict[int, str] = {}
    for group in groups:
        numbers = group["params"]
        found |= dict(zip(numbers, group.get("param_names", map(str, numbers)), strict=True))
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        raise ShoestringError(f"the optimiser has two parameters named {twice[0]}, so their state cannot be told apart")
    return found


def _parameters(optimizer: torch.optim.Optimizer) -> list[dict[str, list[int]]]:
    """The shape of each parameter by name, group by group."""
    names = iter(_names(optimizer.state_dict()["param_groups"]).values())
    return [{next(names): list(p.shape) for p in group["params"]} for group in optimizer.param_groups]


def _signature(tensor: Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), *tensor.shape]


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item, key) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ShoestringError(f"{key} of the optimiser cannot be saved: it is a {type(value).__name__}")


def _as(example: Any, value: Any) -> Any:
    """`value` from JSON, as the tuple it was where the optimiser has a tuple."""
    return tuple(value) if isinstance(example, tuple) else value


def _same(what: str, saved: Any, present: Any) -> None:
    """Raises: ShoestringError, naming the first difference, where the two differ."""
    if saved == present:
        return
    if isinstance(saved, dict) and isinstance(present, dict):
        key = next(k for k in {**saved, **present} if saved.get(k) != present.get(k))
        what, saved, present = f"{what} {key}", saved.get(key, "absent"), present.get(key, "absent")
    raise ShoestringError(f"the saved optimiser state does not fit: {what} was {saved} and is now {present}")
