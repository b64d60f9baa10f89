"""The embedding and the head of a model in few bits: rounded to the nearest, in groups of 32 columns."""

from typing import Any

import torch

from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError
from shoestring.quantise.format import Encoded
from shoestring.quantise.formats.integer_groups import IntegerGroups

TABLE_BITS = (4, 8, 16)
"""Bits of embedding and head. 16: as float16, in no groups."""


def table_names(model: LanguageModule) -> tuple[str, ...]:
    """The modules of the embedding, and of the head where it has a matrix of its own."""
    anatomy = model.anatomy()
    return tuple(name for name in (anatomy.embedding, anatomy.head) if name)


@torch.no_grad()
def quantise_tables(model: LanguageModule, bits: int) -> dict[str, Encoded]:
    """Embedding and head by name, encoded; the model computes with what they are rounded to. At 16 bits: none.

    Raises: ShoestringError for a weight that is not finite.
    """
    found: dict[str, Encoded] = {}
    for name in table_names(model):
        weight: Any = model.get_submodule(name).weight
        if bits == 16:
            weight.copy_(weight.half())
            continue
        try:
            found[name] = IntegerGroups(code_bits=bits, group=32, symmetric=True).encode(weight)
        except ShoestringError as error:
            raise ShoestringError(f"{name}: {error}") from None
        weight.copy_(found[name].dequantise())
    model.changed()
    return found


def table_bytes(model: LanguageModule, bits: int) -> int:
    """Bytes that they take."""
    form = IntegerGroups(code_bits=min(bits, 8), group=32, symmetric=True)
    weights = [model.get_parameter(f"{name}.weight") for name in table_names(model)]
    sizes = [(len(weight), weight.shape[1]) for weight in weights]
    return sum(2 * rows * columns if bits == 16 else form.size(rows, columns) for rows, columns in sizes)
