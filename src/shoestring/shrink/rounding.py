"""From a trained Transformer to a packed one: which numbers its matrices are rounded to, and what was done to each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.formats.integer import Integer
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.lowbit.linear import LowBitLinear
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.shrink.packed_transformer import PackedTransformer

AFTERWARDS = Ternary(scale="row")
"""What a matrix that was trained in floating point is rounded to."""


@dataclass(frozen=True)
class Ternaries:
    """The matrices of a model's blocks as they are packed. trained: quantised as in training, exactly. rounded: not before now,
    or in another format, at a cost in quality. kept: the names of those that the run had stay as they are.
    """

    trained: dict[str, Quantised]
    rounded: dict[str, Quantised]
    kept: tuple[str, ...]

    def items(self) -> dict[str, Quantised]:
        """All that become ternary."""
        return self.trained | self.rounded


def ternaries(model: Transformer, quantised: bool = True) -> Ternaries:
    """What each matrix in the blocks of `model` becomes. A model some of whose layers are of a run for ternary weights keeps
    its other layers in float32, as the run did; of any other model every matrix is rounded now.

    quantised: False where that run had not begun to quantise them, which makes them rounded, in the run's own way.

    Raises: UsageError where a matrix has a bias, ShoestringError where a weight is not finite.
    """
    linear = {
        f"blocks.{name}": module for name, module in model.blocks.named_modules() if isinstance(module, nn.Linear)
    }
    for name, module in linear.items():
        if module.bias is not None:
            raise UsageError(f"{name} has a bias: a packed matrix has none")
    ternary = {
        name: module.quantise()
        for name, module in linear.items()
        if isinstance(module, LowBitLinear) and module.format.largest == 1
    }
    others = {name: module for name, module in linear.items() if name not in ternary}
    if ternary:
        return Ternaries(ternary if quantised else {}, {} if quantised else ternary, tuple(others))
    return Ternaries({}, {name: AFTERWARDS.quantise(module.weight) for name, module in others.items()}, ())


@torch.no_grad()
def pack(model: Transformer, chosen: Ternaries, layout: str, embedding: int) -> PackedTransformer:
    """The packed model. layout: of the ternary matrices. embedding: bits of embedding and head, 4, 8 or 16.

    Norms stay float32, and so do the matrices that `chosen` keeps: they are copied.
    """
    with outline():
        made = PackedTransformer(model.config)
    for name, quantised in chosen.items().items():
        made.set_submodule(name, PackedLinear.of(quantised, layout))
    for name in ("embedding",) if model.head is None else ("embedding", "head"):
        made.set_submodule(name, table(model.get_submodule(name).weight, embedding))
    theirs = model.state_dict()
    rest = {name: theirs[name].float().clone() for name, value in made.state_dict().items() if value.is_meta}
    made.load_state_dict(rest, strict=False, assign=True)
    return made.ready()


def table(weight: Any, bits: int) -> PackedEmbedding:
    """`weight` [rows, columns] as integers of so many bits with a scale a row, or at 16 as float16.

    Raises: UsageError where float16 cannot hold a weight.
    """
    matrix: Tensor = weight.detach()
    rows, columns = matrix.shape
    if bits == 16:
        half = matrix.to(torch.float16)
        if not half.isfinite().all():
            raise UsageError("the embedding has weights that float16 cannot hold: give it 8 bits")
        return PackedEmbedding(half, None, rows, columns, 16)
    return PackedEmbedding.of(Integer(bits=bits, scale="row").quantise(matrix), bits)
