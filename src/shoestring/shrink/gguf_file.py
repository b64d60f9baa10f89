"""A model with ternary matrices as one GGUF file, and what number each weight is in it.

The architecture is qwen3 with query-key norm and llama without, the names and sizes those of the stock class that
`model.hf` makes.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError
from shoestring.lowbit.gguf import BLOCK, is_ternary, rounding
from shoestring.model.hf import from_transformers, require_uniform, to_transformers
from shoestring.model.transformer import Transformer
from shoestring.shrink.gguf_writer import encoded, package, write_stock

log = logging.getLogger(__name__)

Kind = Literal["TQ1_0", "TQ2_0"]
KINDS: tuple[Kind, ...] = ("TQ1_0", "TQ2_0")
TABLES = {16: "F16", 8: "Q8_0"}
"""The types of embedding and head, by their bits. Q8_0: int8 with a float16 scale for 32 columns."""


@dataclass(frozen=True)
class WrittenFile:
    """What was written.

    bytes: of the file.
    ternary: the names there of the matrices in ternary blocks. A fused matrix of ours is several there.
    wide: the same of the matrices of blocks that are stored in float16.
    rounding: by how much, relatively, float16 moved a scale at most.
    """

    bytes: int
    ternary: tuple[str, ...]
    wide: tuple[str, ...]
    rounding: float


def require_ternary(model: Transformer, kind: Kind) -> None:
    """Raises: UsageError where no matrix of `model`, plain float32 ones, can be stored in blocks of this kind."""
    matrices = [
        weight for name, weight in model.state_dict().items() if name.startswith("blocks.") and weight.dim() > 1
    ]
    if any(is_ternary(weight) for weight in matrices):
        return
    columns = sorted({weight.shape[1] for weight in matrices})
    listed = ", ".join(map(str, columns))
    if any(each % BLOCK == 0 for each in columns):
        raise UsageError(f"{kind} holds one number and its negative in {BLOCK} columns, and no matrix here is so")
    config = model.config
    width = -(-config.width // BLOCK) * BLOCK
    hidden = -(-config.hidden * width // config.width // BLOCK) * BLOCK
    raise UsageError(
        f"{kind} has blocks of {BLOCK} columns, and no matrix of this model has a multiple of that ({listed}): train it with "
        f"--model.width {width} --model.hidden {hidden}, or pack this one with --to ternary2, which takes any width"
    )


def write_gguf(
    path: Path,
    model: Transformer,
    tokenizer: TextTokenizer,
    kind: Kind,
    *,
    embedding: int = 16,
    chat_template: str | None = None,
) -> WrittenFile:
    """Write `model` to `path`, whole or not at all.

    model: with plain float32 matrices.
    kind: the type of those in its blocks that are ternary: 0 or plus or minus one number in every run of 256 columns of a row.
    At least one must be. Others are stored in float16, which is told.
    embedding: bits of embedding and head, 16 or 8.
    chat_template: in Jinja.

    Raises: UsageError without the `gguf` package, where no stock class holds the architecture, or where no matrix is
    ternary; ShoestringError where float16 cannot hold a scale or a weight.
    """
    _refuse_bits(embedding)
    require_uniform(model)
    require_ternary(model, kind)
    moved = [0.0]

    def type_of(name: str, weight: Tensor) -> str:
        if ".layers." not in name:
            return TABLES[embedding]
        if not is_ternary(weight):
            return "F16"
        moved.append(rounding(weight))
        return kind

    stock = to_transformers(model)
    types = write_stock(path, stock, tokenizer, type_of, kind, chat_template=chat_template)
    ternary = tuple(name for name, found in types.items() if found == kind)
    wide = tuple(name for name, found in types.items() if found == "F16" and name.startswith("blk."))
    if wide:
        count = len(ternary) + len(wide)
        log.warning(
            f"{len(wide)} of the {count} matrices of blocks in the file are stored in F16: their columns are no multiple of "
            f"{BLOCK}, or they have other numbers than one and its negative in a block of so many "
            f"({wide[0]}{' ...' if wide[1:] else ''})"
        )
    return WrittenFile(path.stat().st_size, ternary, wide, max(moved))


def _refuse_bits(embedding: int) -> None:
    """Raises: UsageError where no file can be written with an embedding of so many bits."""
    package()
    if embedding not in TABLES:
        raise UsageError(f"a GGUF file has its embedding in 16 or 8 bits here, not {embedding}")


@torch.no_grad()
def as_stored(model: Transformer, embedding: int) -> Transformer:
    """A copy of `model` with the numbers of the file that `write_gguf` makes of it: matrices of blocks as float16 (a ternary one,
    whose scales are that, as much as another), tables as that or Q8_0, norms as they are. Raises: as `write_gguf` does."""
    gguf = package()
    _refuse_bits(embedding)
    stock = to_transformers(model)
    for name, weight in stock.state_dict().items():
        if weight.dim() == 1 or (name == "lm_head.weight" and model.config.tied):
            continue
        if ".layers." in name or embedding == 16:
            weight.copy_(weight.half())
        else:
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(*encoded(name, weight, TABLES[embedding]))))
    return from_transformers(stock).eval()
