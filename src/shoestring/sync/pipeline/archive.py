"""The parts of one stage as one file's bytes (safetensors), and back."""

import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.sync.pipeline.part import ModelPart
from shoestring.sync.pipeline.state import optimizer_of, restore, weights_of

VALUES = "values"
"""What is no tensor, as the bytes of its JSON text."""


def pack(parts: Mapping[int, ModelPart]) -> bytes:
    """Weights, optimiser states, norms and factors of the parts."""
    content: dict[str, Tensor] = {}
    for number, part in parts.items():
        tensors, values = optimizer_of(part.optimizer)
        kept = [values, part.squared_norm, part.lr_scale]
        tensors[VALUES] = torch.frombuffer(bytearray(json.dumps(kept).encode()), dtype=torch.uint8)
        for name, tensor in (weights_of(part.module) | tensors).items():
            content[f"{number}/{name}"] = tensor.detach().cpu().contiguous().clone()
    return save(content)


def unpack(content: bytes, parts: Mapping[int, ModelPart], name: str) -> None:
    """Put back what `pack` kept.

    name: of the file, for errors.
    Raises: ShoestringError where it is not such a file.
    """
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ShoestringError(f"{name} is damaged: {error}") from None
    for number, part in parts.items():
        mine = {key.partition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{number}/")}
        if VALUES not in mine:
            raise ShoestringError(f"{name} holds no part {number}: it is of a pipeline cut in another way")
        values, part.squared_norm, part.lr_scale = json.loads(bytes(mine.pop(VALUES).tolist()))
        restore(part.module, part.optimizer, mine, values)
