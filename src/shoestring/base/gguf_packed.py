"""The model of a GGUF file with its matrices as the file has them: Q4_0, Q4_1 and Q8_0 stay packed, and nothing is rounded."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from shoestring.base.gguf_file import GGUFFile, GGUFTensor, read_bytes, read_tensor
from shoestring.base.gguf_model import Outline, outlined
from shoestring.base.quantised_model import QuantisedTransformer
from shoestring.errors import UsageError
from shoestring.lowbit.gguf_groups import BLOCK_BYTES, groups
from shoestring.lowbit.grouped import GroupedEmbedding, GroupedLinear
from shoestring.lowbit.packing.grouped import GroupedMatrix
from shoestring.model.bridge.family import WeightPlace
from shoestring.model.bridge.fill import put
from shoestring.model.outline import outline


class TensorPart(NamedTuple):
    """A tensor of the file that is a part of one of our weights. theirs: its name with transformers."""

    stored: GGUFTensor
    theirs: str
    place: WeightPlace


@torch.no_grad()
def open_gguf_packed(file: GGUFFile) -> tuple[QuantisedTransformer, int]:
    """(the native model of a file, how many of its matrices are plain numbers in float32).

    Such are matrices of other types, and those whose parts are of types of different bits.
    Raises: UsageError as `open_gguf_model`.
    """
    known = outlined(file)
    with outline():
        model = QuantisedTransformer(known.config)
    plain = 0
    try:
        parts = _parts(file, known)
        for name in sorted(
            parts, key=lambda name: name.endswith("weight")
        ):  # biases first: a packed matrix takes its own
            holder, _, last = name.rpartition(".")
            module = model.get_submodule(holder)
            if last == "weight" and isinstance(module, nn.Linear | nn.Embedding):
                if len(bits := {_bits(part.stored) for part in parts[name]}) == 1 and 0 not in bits:
                    model.set_submodule(
                        holder, _packed(file, known, module, parts[name], holder in ("embedding", "head"))
                    )
                    continue
                plain += 1
            for part in parts[name]:
                weight = read_tensor(file, part.stored.name, torch.float32)
                put(model, part.place, part.theirs, known.architecture.restored(part.theirs, weight, known.config))
    except UsageError as error:
        raise UsageError(f"{file.path}: {error}") from None
    return model.ready(), plain


def _parts(file: GGUFFile, known: Outline) -> dict[str, list[TensorPart]]:
    """Of each of our weights, its parts in the order of their rows. Raises: UsageError where one is missing, or there twice."""
    left, parts = dict(known.family.places(known.config)), dict[str, list[TensorPart]]()
    for name, theirs in known.names.items():
        if name not in file.tensors:
            continue
        place = left.pop(theirs, None)
        if place is None:
            raise UsageError(f"'{name}' is there twice")
        parts.setdefault(place.name, []).append(TensorPart(file.tensors[name], theirs, place))
    if known.config.tied:
        left.pop(known.family.head, None)
    if left:
        raise UsageError(f"{len(left)} weights of this model are missing: '{next(iter(left))}' first")
    return {name: sorted(found, key=lambda part: part.place.start) for name, found in parts.items()}


def _bits(stored: GGUFTensor) -> int:
    """Of a matrix that can stay packed; 0 for any other."""
    return (8 if stored.type == "Q8_0" else 4) if stored.type in BLOCK_BYTES else 0


def _packed(file: GGUFFile, known: Outline, module: Any, parts: Sequence[TensorPart], table: bool) -> nn.Module:
    """What takes the place of a linear layer, or of an embedding, whose matrix has these parts.

    Where an architecture puts rows into another order, it does so whatever is in them: bytes will do.
    """
    total, columns = module.weight.shape
    made = list[GroupedMatrix]()
    for part in parts:
        rows = total if part.place.rows is None else part.place.rows
        if part.stored.shape != (rows, columns):
            raise UsageError(
                f"'{part.theirs}' has the shape {part.stored.shape}, where the model has {(rows, columns)}"
            )
        content = known.architecture.restored(part.theirs, read_bytes(file, part.stored.name), known.config)
        if part.place.order is not None:
            content = content[part.place.order]
        made.append(groups(content, part.stored.type))
    codes, scales = (torch.cat([one[index] for one in made]) for index in (0, 1))  # type: ignore[misc]
    minimums = (
        torch.cat([one.minimums for one in made if one.minimums is not None]) if made[0].minimums is not None else None
    )
    matrix = GroupedMatrix(codes, scales, minimums)
    if table:
        return GroupedEmbedding.of(matrix, columns)
    bias = None if module.bias is None else module.bias.detach()
    return GroupedLinear.of(matrix, columns, bias)
