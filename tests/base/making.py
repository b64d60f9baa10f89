"""Small models of transformers as folders and as GGUF files, and tokenizers of each kind, for the openers to open."""

import contextlib
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from shoestring.data.bpe import train_bpe

try:
    gguf: Any = importlib.import_module("gguf")
except ImportError:
    gguf = None

VOCABULARY, CONTEXT = 512, 64

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": 3,
    "pad_token_id": None,
}
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "eos_token_id": 3}
SIZES = {"gpt_neox": NEOX, "gpt2": {**GPT2, "bos_token_id": None}}
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt_neox": "gptneox"}


def stock(kind: str, **more: Any) -> Any:
    """A random model of transformers in float32, every vector of it away from where it starts."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES.get(kind, LLAMA), **more})
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return made


def save(model: Any, folder: Path, **how: Any) -> Path:
    """The folder of a model."""
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder, **how)
    return folder


def ids(*shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


def paired(name: str, weight: Tensor, config: Any) -> Tensor:
    """The weight as llama.cpp's converter writes it (convert_hf_to_gguf.py: LlamaModel.permute, GPTNeoXModel.modify_tensors)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", 0)}
    part = name.split(".")[-2]
    if config.model_type == "llama" and part in heads:
        split = weight.reshape(heads[part], 2, weight.shape[0] // heads[part] // 2, *weight.shape[1:])
        return split.swapaxes(1, 2).reshape(weight.shape)
    if part == "query_key_value":
        width = config.hidden_size // config.num_attention_heads
        split = weight.reshape(config.num_attention_heads, 3, width, *weight.shape[1:])
        return torch.cat([split[:, kind].reshape(-1, *weight.shape[1:]) for kind in range(3)])
    return weight


def encoded(weight: Tensor, kind: str) -> tuple[np.ndarray, Any]:
    """(the bytes, the type) of a matrix; of a type that the package cannot make, blocks at random."""
    given = gguf.GGMLQuantizationType[kind]
    if kind.endswith("_K"):
        block, size = gguf.GGML_QUANT_SIZES[given]
        drawn = np.random.default_rng(0).integers(0, 40, (weight.shape[0], weight.shape[1] // block * size))
        return drawn.astype(np.uint8), given
    return gguf.quants.quantize(weight.float().numpy(), given), given


def write_gguf(
    model: Any, path: Path, kind: str = "F32", metadata: Mapping[str, Any] | None = None, tokens: Any = None
) -> dict[str, Tensor]:
    """A model of transformers as llama.cpp's converter writes it. Returns what the file's matrices stand for, by names there.

    kind: the type of the matrices. metadata: more of it, by key. tokens: writes the tokenizer into the writer that it is given.
    """
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "gpt_neox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
        share = config.rope_parameters.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(share * config.hidden_size // config.num_attention_heads))
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if config.model_type == "qwen3":
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
    for key, value in (metadata or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    if tokens is not None:
        tokens(writer)
    stands_for: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target, name
        weight = paired(name, weight, config)
        if weight.dim() == 1:
            writer.add_tensor(target, weight.float().numpy())
            stands_for[target] = weight
        else:
            data, given = encoded(weight, kind)
            writer.add_tensor(target, data, raw_dtype=given)
            plain = kind in ("F32", "F16")
            floats = data if plain else gguf.quants.dequantize(data, given)
            stands_for[target] = torch.from_numpy(np.asarray(floats, np.float32)).view(weight.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def add_tokens(writer: Any, model: str, tokens: Sequence[str], types: Sequence[int], end: int, **more: Any) -> None:
    """The tokenizer in a file's metadata. more: keys after 'tokenizer.ggml.'."""
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    writer.add_eos_token_id(end)
    for key, value in more.items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(f"tokenizer.ggml.{key}", value, kind)


def trained_tokens(writer: Any) -> None:
    """A byte-level tokenizer, trained on this file, in a file's metadata."""
    trained = train_bpe([Path(__file__).read_text()], VOCABULARY)
    tokens = [trained.token(place) for place in range(trained.vocabulary)]
    merges = [" ".join(pair) for pair in json.loads(trained.rules.to_str())["model"]["merges"]]
    add_tokens(writer, "gpt2", tokens, [3] + [1] * (len(tokens) - 1), 0, pre="smollm", merges=merges)
