"""What was made of a model's matrices: put into a model, and as values and tensors, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError
from shoestring.quantise.format import Encoded
from shoestring.quantise.kept import read_back, written


@dataclass
class Quantisation:
    """What was made of a model.

    matrices: of the layers, by name, in order. tables: embedding and head, likewise. changed: new values of other weights, by a
    transform. rounded: names of the matrices that the budget
    left no time for: rounded to the nearest. kept: names of those that stay as they are. notes: a line each.
    spent: what it took.
    """

    matrices: dict[str, Encoded] = field(default_factory=dict)
    tables: dict[str, Encoded] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    rounded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    spent: Charge = NOTHING


@torch.no_grad()
def put(model: LanguageModule, tensors: Mapping[str, Tensor]) -> None:
    """Have these values in parameters of the model. Raises: UsageError where it has none of that shape."""
    known = dict(model.named_parameters())
    for name, tensor in tensors.items():
        old = known.get(name)
        if old is None or old.shape != tensor.shape:
            raise UsageError(f"the model has no {name} of the shape {list(tensor.shape)}")
        old.copy_(tensor)


@torch.no_grad()
def install(model: LanguageModule, changed: Mapping[str, Tensor], matrices: Mapping[str, Encoded]) -> None:
    """Have the model compute with what was decided, in plain layers. Raises: UsageError where it does not fit."""
    put(model, changed)
    known = {one.name: one.weight for one in model.anatomy().matrices()}
    for name, one in matrices.items():
        weight = known.get(name)
        if weight is None or tuple(weight.shape) != (one.rows, one.columns):
            there = "no such matrix" if weight is None else f"one of {list(weight.shape)}"
            raise UsageError(f"{name} was quantised as {one.rows} x {one.columns}, and the model has {there}")
        weight.copy_(one.dequantise())
    model.changed()


def round_inputs(model: LanguageModule, matrices: Mapping[str, Encoded]) -> list[RemovableHandle]:
    """Have plain layers round what they read, as was settled for their matrices. Returns what takes that back."""
    return [
        model.get_submodule(name).register_forward_pre_hook(one.inputs.before(one.pair))
        for name, one in matrices.items()
        if one.inputs is not None
    ]


def decided(done: Quantisation) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A quantisation as JSON values, and tensors by name."""
    values, tensors = written(done.matrices)
    told = {"matrices": values, "rounded": done.rounded, "kept": done.kept, "notes": done.notes}
    return told, tensors | {f"changed:{name}": one for name, one in done.changed.items()}


def from_decided(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Quantisation:
    """What `decided` was given, but for what it took. Raises: ShoestringError where it is damaged."""
    if not isinstance(values.get("matrices"), dict):
        raise ShoestringError("no matrices are described")
    changed = {name.removeprefix("changed:"): one for name, one in tensors.items() if name.startswith("changed:")}
    said = {key: [str(one) for one in values.get(key) or ()] for key in ("rounded", "kept", "notes")}
    matrices = read_back(values["matrices"], tensors)
    return Quantisation(matrices, changed=changed, rounded=said["rounded"], kept=said["kept"], notes=said["notes"])
