"""A model with ternary matrices as one GGUF file, which llama.cpp and what is built on it load.

The architecture is qwen3 with query-key norm and llama without, the names and sizes those of the stock class that
`model.hf` makes. llama.cpp turns neighbouring features of a llama's queries and keys by position, and features half a head
apart of a qwen3's, as transformers and this package do of both: the rows of a llama's two matrices are put in that order.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from shoestring import atomic
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.gguf import BLOCK, blocks, is_ternary, rounding
from shoestring.model.config import ModelConfig
from shoestring.model.hf import from_transformers, to_transformers
from shoestring.model.transformer import Transformer
from shoestring.shrink.gguf_tokenizer import write_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

Kind = Literal["TQ1_0", "TQ2_0"]
KINDS: tuple[Kind, ...] = ("TQ1_0", "TQ2_0")
TABLES = {16: "F16", 8: "Q8_0"}
"""The types of embedding and head, by their bits. Q8_0: int8 with a float16 scale for 32 columns."""


QWEN3_HEAD_SIZE = "qwen3_moe.attention.key_length"
"""The key from which transformers takes a head size for any architecture (its `integrations/ggml.py`)."""


@dataclass(frozen=True)
class Written:
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
    say: Callable[[str], None],
) -> Written:
    """Write `model` to `path`, whole or not at all.

    model: with plain float32 matrices.
    kind: the type of those in its blocks that are ternary: 0 or plus or minus one number in every run of 256 columns of a row.
    At least one must be. Others are stored in float16, which is told.
    embedding: bits of embedding and head, 16 or 8.
    say: told, in one line each, what a reader may not expect.

    Raises: UsageError without the `gguf` package, where no stock class holds the architecture, or where no matrix is
    ternary; ShoestringError where float16 cannot hold a scale or a weight.
    """
    gguf = _package(embedding)
    require_ternary(model, kind)
    stock = to_transformers(model)
    name = str(stock.config.model_type)
    if name not in ("qwen3", "llama") or model.config.token_mixer.options["rope_scaling"] is not None:
        raise UsageError(
            f"a GGUF file is written of a llama or qwen3 model without scaled positions; this one is of the class {name}"
        )
    if stock.config.attention_bias:
        raise UsageError("a GGUF file is written of a model without biases: set model.token_mixer.bias to 'none'")
    architecture = {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA}[name]
    names = gguf.get_tensor_name_map(architecture, model.config.layers)
    ternary, wide, moved = list[str](), list[str](), 0.0
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=path.parent) as folder:
        temporary = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(temporary, name)
        _describe(writer, model.config, kind, gguf)
        write_tokenizer(writer, tokenizer, model.config.vocabulary, say)
        for theirs, weight in stock.state_dict().items():
            if theirs == "lm_head.weight" and model.config.tied:
                continue
            target = names.get_name(theirs, try_suffixes=(".weight",))
            if target is None:
                raise ShoestringError(f"GGUF has no name for {theirs}")
            if name == "llama":
                weight = _neighbours(theirs, weight, model.config)
            if weight.dim() == 1:
                found = "F32"
            elif ".layers." not in theirs:
                found = TABLES[embedding]
            elif not is_ternary(weight):
                found = "F16"
                wide.append(target)
            else:
                found, moved = kind, max(moved, rounding(weight))
                ternary.append(target)
            data, given = _encoded(theirs, weight, found, gguf)
            writer.add_tensor(target, data, raw_dtype=given)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        atomic.write_bytes(path, temporary.read_bytes())
    if wide:
        count = len(ternary) + len(wide)
        say(
            f"{len(wide)} of the {count} matrices of blocks in the file are stored in F16: their columns are no multiple of "
            f"{BLOCK}, or they have other numbers than one and its negative in a block of so many "
            f"({wide[0]}{' ...' if wide[1:] else ''})"
        )
    return Written(path.stat().st_size, tuple(ternary), tuple(wide), moved)


def _package(embedding: int) -> Any:
    """The module gguf, where a file with an embedding of so many bits can be written."""
    try:
        import gguf
    except ImportError:
        raise UsageError("writing GGUF needs the 'gguf' package: pip install 'shoestring[gguf]'") from None
    if embedding not in TABLES:
        raise UsageError(f"a GGUF file has its embedding in 16 or 8 bits here, not {embedding}")
    return gguf


@torch.no_grad()
def as_stored(model: Transformer, embedding: int) -> Transformer:
    """A copy of `model` with the numbers of the file that `write_gguf` makes of it: matrices of blocks as float16 (a ternary one,
    whose scales are that, as much as another), tables as that or Q8_0, norms as they are. Raises: as `write_gguf` does."""
    gguf = _package(embedding)
    stock = to_transformers(model)
    for name, weight in stock.state_dict().items():
        if weight.dim() == 1 or (name == "lm_head.weight" and model.config.tied):
            continue
        if ".layers." in name or embedding == 16:
            weight.copy_(weight.half())
        else:
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(*_encoded(name, weight, TABLES[embedding], gguf))))
    return from_transformers(stock).eval()


def _encoded(name: str, weight: Tensor, kind: str, gguf: Any) -> tuple[Any, Any]:
    """(numpy array, GGUF type) of a tensor."""
    given = gguf.GGMLQuantizationType[kind]
    if kind in KINDS:
        try:
            return blocks(weight, kind).numpy(), given
        except ShoestringError as error:
            raise ShoestringError(f"{name}: {error}") from None
    if kind == "Q8_0" and weight.shape[1] % 32:
        raise UsageError(
            f"Q8_0 has blocks of 32 columns, which {weight.shape[1]} is no multiple of: give --embedding 16"
        )
    if kind == "F16" and not weight.half().isfinite().all():
        raise ShoestringError(f"{name} has weights that float16 cannot hold")
    return gguf.quants.quantize(weight.float().numpy(), given), given


def _describe(writer: "GGUFWriter", config: ModelConfig, kind: Kind, gguf: Any) -> None:
    """The sizes and constants that llama.cpp wants to know."""
    writer.add_name("shoestring")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    if config.token_mixer.options["qk_norm"]:
        # transformers reads no head size from a qwen3's own keys, and takes 128; it does read this one, llama.cpp ignores it
        writer.add_uint32(QWEN3_HEAD_SIZE, config.head_width)
    writer.add_rope_freq_base(config.token_mixer.options["rope_theta"])
    writer.add_layer_norm_rms_eps(config.norm.options["epsilon"])
    writer.add_vocab_size(config.vocabulary)


def _neighbours(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """A query or key matrix with features i and i + width / 2 of every head moved next to each other; others as they are."""
    heads = {"q_proj": config.heads, "k_proj": config.key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.view(heads, 2, config.head_width // 2, -1).transpose(1, 2).reshape(weight.shape)
