"""A quantised model as one GGUF file: its codes and scales as the blocks that llama.cpp reads, none of them rounded anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoestring.base.opened import Opened
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.log_lines import held_back
from shoestring.lowbit.gguf import blocks
from shoestring.lowbit.gguf_encoded import q4_0, q4_k, q8_0
from shoestring.model.bridge.family import WeightPlace, family_holding
from shoestring.model.transformer import Transformer
from shoestring.quantise.conduct import QuantiseOutcome
from shoestring.quantise.format import Encoded
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.formats.k_blocks import KBlocks
from shoestring.quantise.formats.ternary_blocks import TernaryBlocks
from shoestring.shrink.export import stock_of
from shoestring.shrink.gguf_writer import write_stock

GGUF_FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Q8_0": ("integer_groups", {"code_bits": 8, "group": 32, "symmetric": True}),
    "Q4_0": ("integer_groups", {"code_bits": 4, "group": 32, "symmetric": True}),
    "Q4_K": ("k_blocks", {}),
    "TQ2_0": ("ternary_blocks", {}),
    "TQ1_0": ("ternary_blocks", {}),
}
"""The types of matrices, and the format of each with its options."""


def write_quantised_gguf(
    out: Path, opened: Opened, model: LanguageModule, made: QuantiseOutcome, kind: str
) -> tuple[int, list[str]]:
    """Write the file `out`, whole or not at all: (its bytes, a line each of what a reader may not expect).

    model: whose weights are what `made` stands for. kind: of `GGUF_FORMATS`.
    Raises: UsageError without a tokenizer or the package gguf, and for a model that llama.cpp has no architecture for.
    """
    said = list[str]()
    if opened.tokenizer is None:
        raise UsageError(f"{opened.about.place} has no tokenizer, and a GGUF file holds one")
    stock = stock_of(model)
    content: dict[str, tuple[str, Tensor]] = {}
    for theirs, name, place in _parts(model, stock):
        if name in made.matrices:
            content[theirs] = block_rows(made.matrices[name], kind, place)
    other = sorted({each for each, _ in content.values()} - {kind, "Q8_0"})
    if other:
        count = sum(each in other for each, _ in content.values())
        said.append(
            f"{count} matrices are {', '.join(other)}: their columns are no multiple of 256, the block of {kind}"
        )
    template = opened.about.chat_template
    with held_back("shoestring.shrink.gguf_writer") as more, held_back("shoestring.shrink.gguf_tokenizer") as of_tokens:
        write_stock(out, stock, opened.tokenizer, lambda *_: "F16", kind, chat_template=template, given_blocks=content)
    return out.stat().st_size, [*said, *more, *of_tokens]


def _parts(model: LanguageModule, stock: Any) -> list[tuple[str, str, WeightPlace]]:
    """(name in transformers, name of our module, where in it) of every matrix."""
    if isinstance(model, Transformer):
        family, _ = family_holding(model.config)
        places = family.places(model.config)
    else:
        places = {name: WeightPlace(f"stock.{name}") for name in stock.state_dict()}
    suffix = ".weight"
    return [(theirs, one.name.removesuffix(suffix), one) for theirs, one in places.items() if one.name.endswith(suffix)]


def block_rows(one: Encoded, kind: str, place: WeightPlace | None = None) -> tuple[str, Tensor]:
    """(type, uint8 [rows, bytes of a row]) of an encoded matrix, or of the rows of it at `place`.

    kind: of the ternary types, which. Raises: UsageError where GGUF has no type for the matrix.
    """
    if one.pair is not None:
        raise UsageError("a transform that is done where the model runs is in no GGUF file: use another --transform")
    form, codes = one.format, one.unpacked()
    numbers = one.parameters
    found: tuple[str, Tensor]
    if isinstance(form, KBlocks):
        found = "Q4_K", q4_k(codes, *(numbers[key] for key in ("scale", "least", "parts", "bottoms")))
    elif isinstance(form, TernaryBlocks):
        found = kind, blocks(one.plain(), kind)
    elif isinstance(form, IntegerGroups) and form.symmetric and form.group == 32 and form.code_bits in (4, 8):
        if one.columns % 32:
            raise UsageError(f"GGUF has blocks of 32 columns, which {one.columns} is no multiple of")
        if form.code_bits == 8:
            found = "Q8_0", q8_0((codes.int() - 128).to(torch.int8), numbers["scale"])
        else:
            found = "Q4_0", q4_0(codes, numbers["scale"])
    else:
        raise UsageError(f"GGUF has no type for '{form.choice.name}' with these options")
    if place is not None and (place.rows is not None or place.order is not None):
        rows = slice(place.start, place.start + (place.rows or one.rows))
        content = found[1][rows]
        if place.order is not None:  # ours are theirs in this order
            back = torch.empty_like(content)
            back[place.order] = content
            content = back
        found = found[0], content
    return found
