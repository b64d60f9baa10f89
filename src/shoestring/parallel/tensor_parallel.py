"""Tensor parallelism: the heads and hidden features of each layer divided among processes, by DTensor.

The plan is read off the model's anatomy: every axis 'head', 'key_value_head' and 'hidden' says which rows and columns of which
matrices lie along it. A matrix whose rows do is `ColwiseParallel`, one whose columns do `RowwiseParallel`, in torch's terms.
Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053) divides so: one all-reduce of [B, T, width] behind each of the two parts of a
layer, and as many backward. Embedding and head stay whole in each process.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from shoestring.contract.anatomy import Anatomy, Slice
from shoestring.errors import UsageError

KINDS = ("head", "key_value_head", "hidden")


@dataclass(frozen=True)
class Division:
    """How one weight is divided: its slices of `dim` are put in `order`, and cut into equal parts.

    order: int64 [size of dim], the old place of each index; None: as they are.
    """

    dim: int
    order: Tensor | None


@dataclass(frozen=True)
class Divided:
    """What tensor parallelism did to a model.

    weights: by the name of a parameter.
    partial: names of parameters that each process has whole and uses for its own heads alone: their gradients are summed.
    """

    weights: dict[str, Division]
    partial: frozenset[str]


def divisions(anatomy: Anatomy, parts: int) -> dict[str, Division]:
    """How each weight of a model is divided into `parts`. Raises: UsageError, naming the axis, where one cannot be."""
    slices: defaultdict[tuple[str, int], list[tuple[Slice, int]]] = defaultdict(list)
    for kind in KINDS:
        for axis in anatomy.axes(kind):
            if axis.runs > 1:
                raise UsageError(f"parallel.tensor: the groups of '{kind}' in layer {axis.layer} cannot be divided")
            if axis.size % parts:
                raise UsageError(
                    f"parallel.tensor = {parts} does not divide the {axis.size} of '{kind}' in layer {axis.layer}"
                )
            for one in axis.slices:
                slices[one.name, one.dim].append((one, axis.size))
    if not slices:
        raise UsageError("parallel.tensor: no layer of this model says which of its weights belong to which head")
    weights = dict(anatomy.model.named_parameters())
    found = {}
    for (name, dim), along in slices.items():
        along.sort(key=lambda pair: pair[0].start)
        length = weights[name].shape[dim]
        order = _order(along, parts)
        if len(order) != length or len(set(order)) != length:
            raise UsageError(f"parallel.tensor: {name} has other rows than those of its heads, and cannot be divided")
        same = order == list(range(length))
        found[name] = Division(dim, None if same else torch.tensor(order))
    return found


def _order(along: list[tuple[Slice, int]], parts: int) -> list[int]:
    """The indices of a dimension, those of the first process first."""
    order: list[int] = []
    for part in range(parts):
        for one, size in along:
            each = size // parts * one.unit
            order += range(one.start + part * each, one.start + (part + 1) * each)
    return order


@torch.no_grad()
def divide(anatomy: Anatomy, mesh: DeviceMesh) -> Divided:
    """Divide a model that each process has whole, and the same.

    mesh: of the processes, one dimension.
    Raises: UsageError where it cannot be divided into so many.
    """
    model, parts = anatomy.model, mesh.size()
    found = divisions(anatomy, parts)
    weights = dict(model.named_parameters())
    plans: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    partial: set[str] = set()
    for name, division in found.items():
        weight = weights[name]
        if division.order is not None:
            weight.copy_(weight.index_select(division.dim, division.order.to(weight.device)))
        layer = name.rpartition(".")[0]
        owner, _, child = layer.rpartition(".")
        if type(model.get_submodule(layer)) is not nn.Linear:  # one that rounds, say, looks at its whole weight
            raise UsageError(f"parallel.tensor: {layer} is no plain linear layer: it cannot be divided")
        if name.endswith("weight"):
            plans[owner][child] = ColwiseParallel() if division.dim == 0 else RowwiseParallel()
    for owner, plan in plans.items():
        part = model.get_submodule(owner)
        of_linears = {f"{owner}.{child}.{kind}" for child in plan for kind in ("weight", "bias")}
        partial |= {f"{owner}.{name}" for name, _ in part.named_parameters()} - of_linears
        parallelize_module(part, mesh, plan, src_data_rank=None)
        compute: Any = getattr(part, "divide", None)
        if compute is not None:
            compute(parts)
    return Divided(found, frozenset(partial))
