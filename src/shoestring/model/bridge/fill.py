"""Weights of a transformers model, from wherever they come, into a native model: in little more memory than one copy."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.model.bridge.family import Family, WeightPlace
from shoestring.model.config import ModelConfig
from shoestring.model.outline import outline
from shoestring.model.rotary_kinds import rotary_tables
from shoestring.model.transformer import Transformer


@torch.no_grad()
def fill(config: ModelConfig, family: Family, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Transformer:
    """The model of `config`, on the CPU, with these weights.

    config: from `family.config`.
    tensors: (name, tensor) in any order, under the names of transformers. Each is copied and let go before the next is asked
        for, so a generator over a file needs the memory of one copy and one tensor.
    dtype: of the weights of the model; each is converted as it is copied.

    Raises: UsageError for a weight that is unknown, missing, there twice, of another shape, or not of a floating type.
    """
    with outline():
        model = Transformer(config).to(dtype)
    places = family.places(config)
    left, waiting = dict(places), None
    for given, tensor in tensors:
        name = family.current(given)
        if name is None:
            continue
        if not tensor.is_floating_point():
            raise UsageError(f"'{given}' is {tensor.dtype}, and no plain weight")
        if name == family.head and config.tied:
            waiting = tensor
            continue
        place = left.pop(name, None)
        if place is None:
            there = (
                "is there twice" if name in places else f"is the name of no weight of this {family.model_type} model"
            )
            raise UsageError(f"'{given}' {there}")
        put(model, place, given, tensor)
    if left:
        raise UsageError(
            f"{len(left)} weights of this {family.model_type} model are missing: '{next(iter(left))}' first"
        )
    if waiting is not None and not _same(waiting.to(dtype), model.embedding.weight):
        raise UsageError(f"the model is tied, and yet '{family.head}' is not its embedding")
    model.rotary = rotary_tables(config).to(dtype)
    model.changed()
    return model


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other.device), other)


def put(model: Transformer, place: WeightPlace, given: str, tensor: Tensor) -> None:
    """Copy a weight to its place; our parameter takes memory with the first of its parts."""
    holder, _, last = place.name.rpartition(".")
    module = model.get_submodule(holder)
    parameter: nn.Parameter = getattr(module, last)
    rows = parameter.shape[0] if place.rows is None else place.rows
    expected = (rows, *parameter.shape[1:])
    if tensor.shape != expected:
        raise UsageError(f"'{given}' has the shape {tuple(tensor.shape)}, where the model has {expected}")
    if parameter.is_meta:
        made = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu"))
        for name, value in vars(parameter).items():  # marks for an optimiser
            setattr(made, name, value)
        setattr(module, last, made)
        parameter = made
    if place.order is not None:
        tensor = tensor[place.order.to(tensor.device)]
    parameter[place.start : place.start + rows].copy_(tensor)


@torch.no_grad()
def taken(ours: Tensor, place: WeightPlace) -> Tensor:
    """The weight of transformers that lies at a place of our parameter: the reverse of `fill`."""
    part = ours if place.rows is None else ours[place.start : place.start + place.rows]
    if place.order is None:
        return part
    theirs = torch.empty_like(part)
    theirs[place.order.to(part.device)] = part
    return theirs
