"""A stock model of transformers as one GGUF file, which llama.cpp and what is built on it load.

llama.cpp turns neighbouring features of a llama's queries and keys by position, and features half a head apart of a qwen2's or
qwen3's, as transformers does of all three: the rows of a llama's two matrices are put in that order.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from shoestring import atomic
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.gguf import BLOCK_BYTES, blocks
from shoestring.shrink.gguf_tokenizer import write_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""The types of models of transformers that are written, and the architectures that llama.cpp has for them."""

FILE_TYPES = (
    {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
    | {
        "Q4_0": "MOSTLY_Q4_0",
        "Q4_K": "MOSTLY_Q4_K_S",
    }
    | {kind: f"MOSTLY_{kind}" for kind in BLOCK_BYTES}
)
"""The types of matrices that are written, and what a file mostly of them is called."""

Q8_0_COLUMNS = 32
"""Of a block of Q8_0: int8 with a float16 scale for each."""

HEAD_SIZE = "qwen3_moe.attention.key_length"
"""The key from which transformers takes a head size for any architecture (its `integrations/ggml.py`)."""


def package() -> Any:
    """The module gguf. Raises: UsageError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UsageError("writing GGUF needs the 'gguf' package: pip install 'shoestring[gguf]'") from None
    return gguf


def write_stock(
    path: Path,
    stock: "PreTrainedModel",
    tokenizer: TextTokenizer,
    type_of: Callable[[str, Tensor], str],
    kind: str,
    *,
    chat_template: str | None = None,
    given_blocks: Mapping[str, tuple[str, Tensor]] = MappingProxyType({}),
) -> dict[str, str]:
    """Write a model to `path`, whole or not at all. Returns the type of each tensor, by its name in the file.

    stock: a model of one of `ARCHITECTURES`.
    type_of: (name in transformers, weight) -> the type of a matrix, of `FILE_TYPES`. Vectors are F32.
    kind: the type that most have.
    chat_template: in Jinja.
    given_blocks: by names in transformers, the type of a matrix and its blocks, uint8 [rows, bytes of a row], which are written
    as they are.
    Raises: UsageError without the `gguf` package, or for a model that is not written here; ShoestringError where a type cannot hold
    a weight.
    """
    gguf = package()
    config: Any = stock.config
    _refuse_unknown(config)
    architecture = ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], config.num_hidden_layers)
    types: dict[str, str] = {}
    with atomic.file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.lower())
        _describe(writer, config, FILE_TYPES[kind], gguf)
        write_tokenizer(writer, tokenizer, config.vocab_size)
        if chat_template is not None:
            writer.add_chat_template(chat_template)
        for theirs, weight in stock.state_dict().items():
            if theirs == "lm_head.weight" and config.tie_word_embeddings:
                continue
            target = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise ShoestringError(f"GGUF has no name for {theirs}")
            if theirs in given_blocks:
                types[target], content = given_blocks[theirs]
                content = _neighbours(theirs, content, config) if architecture == "LLAMA" else content
                raw = gguf.GGMLQuantizationType[types[target]]
                writer.add_tensor(target, content.contiguous().numpy(), raw_dtype=raw)
                continue
            if architecture == "LLAMA":
                weight = _neighbours(theirs, weight, config)
            types[target] = "F32" if weight.dim() == 1 else type_of(theirs, weight)
            data, given = encoded(theirs, weight, types[target])
            writer.add_tensor(target, data, raw_dtype=given)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return types


def encoded(name: str, weight: Tensor, kind: str) -> tuple[Any, Any]:
    """(numpy array, GGUF type) of a tensor. Raises: UsageError, ShoestringError where the type cannot hold it."""
    gguf = package()
    given = gguf.GGMLQuantizationType[kind]
    if kind in BLOCK_BYTES:
        try:
            return blocks(weight, kind).numpy(), given
        except ShoestringError as error:
            raise ShoestringError(f"{name}: {error}") from None
    if kind == "Q8_0" and weight.shape[1] % Q8_0_COLUMNS:
        raise UsageError(
            f"{name}: Q8_0 has blocks of {Q8_0_COLUMNS} columns, which {weight.shape[1]} is no multiple of: give 16 bits"
        )
    if not weight.isfinite().all():
        raise ShoestringError(f"{name} has weights that are not finite")
    if kind == "F16" and not weight.half().isfinite().all():
        raise ShoestringError(f"{name} has weights that float16 cannot hold")
    return gguf.quants.quantize(weight.float().numpy(), given), given


def _refuse_unknown(config: Any) -> None:
    """Raises: UsageError for a model that this does not write as llama.cpp reads it."""
    name = config.model_type
    if name not in ARCHITECTURES:
        raise UsageError(f"a GGUF file is written here of models of the type {', '.join(ARCHITECTURES)}, not {name}")
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    for feature, present in {
        f"{kind} scaling of its positions": kind not in ("default", "linear"),
        "partly turned heads": rope.get("partial_rotary_factor", 1.0) != 1,
        "biases in its feed-forward layers": getattr(config, "mlp_bias", False),
        "biases of queries and keys": name == "qwen3" and getattr(config, "attention_bias", False),
        f"the activation '{config.hidden_act}'": config.hidden_act not in ("silu", "swish"),
        "a sliding window": getattr(config, "sliding_window", None) is not None
        and "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]),
    }.items():
        if present:
            raise UsageError(f"a {name} model with {feature} is not written as GGUF here")


def _head_width(config: Any) -> int:
    found: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return found


def _describe(writer: "GGUFWriter", config: Any, file_type: str, gguf: Any) -> None:
    """The sizes and constants that llama.cpp wants to know."""
    width = _head_width(config)
    writer.add_name("shoestring")
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    if config.model_type == "qwen3":
        # transformers reads no head size from a qwen3's own keys, and takes 128; it does read this one, llama.cpp ignores it
        writer.add_uint32(HEAD_SIZE, width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _neighbours(name: str, weight: Tensor, config: Any) -> Tensor:
    """A query or key matrix, or its bias, with features i and i + width / 2 of every head moved next to each other; others as they
    are."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    half = _head_width(config) // 2
    return weight.reshape(heads, 2, half, -1).transpose(1, 2).reshape(weight.shape)
