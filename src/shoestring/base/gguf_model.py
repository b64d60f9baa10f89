"""The model of a GGUF file as one of a family with a bridge: its configuration, and its weights under transformers' names.

llama.cpp's converter changes some weights as it writes them, and here that is undone: the rows of a llama's queries and keys, and
the order of queries, keys and values of a gpt_neox.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoestring.base.gguf_file import GGUFFile, GGUFTensor, package, read_tensor
from shoestring.errors import UsageError, did_you_mean, first_line, printable
from shoestring.model.bridge.family import Family, family_of
from shoestring.model.bridge.fill import fill
from shoestring.model.config import ModelConfig
from shoestring.model.rotary import Rotary
from shoestring.model.transformer import Transformer

UNNEEDED = {"rope_freqs.weight"}
"""Tensors that are no weights. Their numbers are checked by `_scaling`."""


class Architecture(NamedTuple):
    """An architecture of llama.cpp.

    model_type: of transformers.
    settings: of the configuration there, beyond those that all have.
    restored: a weight as transformers has it, by (its name there, the weight, our configuration).
    """

    model_type: str
    settings: Callable[["Metadata"], dict[str, Any]]
    restored: Callable[[str, Tensor, ModelConfig], Tensor]


class Metadata:
    """Metadata of a file, by keys without the architecture's name before them."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def whole(self, key: str, otherwise: int | None = None) -> int:
        """A whole number of at least 1. Raises: UsageError where it is none, or missing with nothing in its place."""
        found = self._found(key, otherwise)
        if isinstance(found, np.ndarray):  # of each layer
            kinds = {int(one) for one in found} if found.dtype.kind in "iu" else {0}
            if len(kinds) != 1:
                raise UsageError(
                    f"{self.file.path}: {self.architecture}.{key} differs between layers, which is not supported"
                )
            found = kinds.pop()
        if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found < 1 << 31:
            raise UsageError(
                f"{self.file.path}: {self.architecture}.{key} is {_short(found)}, and no number of at least 1"
            )
        return found

    def number(self, key: str, otherwise: float | None = None) -> float:
        """A number above 0, to six digits: the file has float32, and its makers wrote 1e-5."""
        found = self._found(key, otherwise)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
            raise UsageError(f"{self.file.path}: {self.architecture}.{key} is {_short(found)}, and no number above 0")
        return float(f"{found:.6g}")

    def _found(self, key: str, otherwise: Any) -> Any:
        found = self.file.metadata.get(f"{self.architecture}.{key}", otherwise)
        if found is None:
            raise UsageError(f"{self.file.path}: its metadata lacks {self.architecture}.{key}")
        return found

    def get(self, key: str, otherwise: Any = None) -> Any:
        return self.file.metadata.get(f"{self.architecture}.{key}", otherwise)


def _short(value: Any) -> str:
    return printable(repr(value))[:60]


class Outline(NamedTuple):
    """What a file's metadata say of its model. names: of each tensor of the file, the name that transformers has for it."""

    architecture: Architecture
    family: Family
    config: ModelConfig
    names: dict[str, str]


def outlined(file: GGUFFile) -> Outline:
    """The outline of the model of a file. Raises: UsageError for an architecture without a bridge, a feature that the native model
    has not, and weights that are unknown."""
    name = str(file.metadata.get("general.architecture", ""))
    if name not in ARCHITECTURES:
        raise UsageError(f"{file.path} is of the architecture '{name[:40]}': {did_you_mean(name[:40], ARCHITECTURES)}")
    architecture, metadata = ARCHITECTURES[name], Metadata(file, name)
    family = family_of(architecture.model_type)
    try:
        config = family.config(_theirs(architecture, metadata))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{file.path}: its sizes make no {architecture.model_type} model: {first_line(error)}"
        ) from None
    return Outline(architecture, family, config, _names(family, config, file, name))


def open_gguf_model(file: GGUFFile, dtype: torch.dtype) -> Transformer:
    """The native model of a file, filled tensor by tensor.

    dtype: of its weights.
    Raises: UsageError for an architecture without a bridge, a feature that the native model has not, and weights that are missing,
    unknown or of another shape.
    """
    architecture, family, config, names = outlined(file)
    try:
        return fill(config, family, _weights(file, architecture, config, names, dtype), dtype)
    except UsageError as error:
        raise UsageError(f"{file.path}: {error}") from None


def _theirs(architecture: Architecture, metadata: Metadata) -> Any:
    """What a bridge reads of a configuration of transformers, whose own class takes seconds to import."""
    tensors, width = metadata.file.tensors, metadata.whole("embedding_length")
    layers, heads = metadata.whole("block_count"), metadata.whole("attention.head_count")
    if layers > len(tensors):
        raise UsageError(f"{metadata.file.path}: {layers} layers are told, and there are {len(tensors)} tensors")
    if metadata.get("expert_count"):
        raise UsageError(f"{metadata.file.path}: a mixture of experts is not supported")
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise UsageError(f"{metadata.file.path} lacks the tensor token_embd.weight")
    key = metadata.whole("attention.key_length", max(1, width // heads))
    if metadata.whole("attention.value_length", key) != key:
        raise UsageError(f"{metadata.file.path}: keys and values of different widths are not supported")
    settings = {
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": metadata.whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": _context(metadata),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": {
            "rope_theta": metadata.number("rope.freq_base", 10000.0),
            **_scaling(metadata, key),
        },
        "head_dim": key,
        **architecture.settings(metadata),
    }
    return SimpleNamespace(model_type=architecture.model_type, **settings)


MOST_CONTEXT = 1 << 21
"""Tokens of a context: the tables of positions have a row for each."""


def _context(metadata: Metadata) -> int:
    context = metadata.whole("context_length")
    if context > MOST_CONTEXT:
        raise UsageError(
            f"{metadata.file.path}: a context of {context} tokens, and {MOST_CONTEXT} are the most that is taken"
        )
    return context


def _scaling(metadata: Metadata, head_width: int) -> dict[str, Any]:
    """The scaling of rotary frequencies, as transformers names it. Raises: UsageError for one that is not known."""
    kind = metadata.get("rope.scaling.type", "none")
    factors = metadata.file.tensors.get("rope_freqs.weight")
    if factors is not None:
        return _llama3(metadata, factors, head_width)
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.number("rope.scaling.factor")}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": metadata.number("rope.scaling.factor"),
            "original_max_position_embeddings": metadata.whole("rope.scaling.original_context_length"),
        }
    if kind != "none":
        raise UsageError(f"{metadata.file.path}: rotary scaling of the type {_short(kind)} is not supported")
    return {"rope_type": "default"}


def _llama3(metadata: Metadata, stored: GGUFTensor, head_width: int) -> dict[str, Any]:
    """Llama 3's scaling: the file has the factors of the frequencies, and the rule that makes them is looked for."""
    if stored.numbers != head_width // 2:
        raise UsageError(f"{metadata.file.path}: {stored.name} has {stored.numbers} numbers, not {head_width // 2}")
    factors = read_tensor(metadata.file, stored.name, torch.float32)
    theta = metadata.number("rope.freq_base", 10000.0)
    factor = round(float(factors.max()), 4)
    rule: dict[str, float | int | bool | str] = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, scaled = (
        Rotary(head_width, 2, theta, scaling=scaling).sin[1, 0, head_width // 2 :].double().asin()
        for scaling in (None, rule)
    )
    # the sine of one radian and less: the first frequency is 1, and all others are below it
    if not 1 <= factor < 1e6 or not torch.allclose(plain / scaled, factors.double(), rtol=1e-3):
        raise UsageError(f"{metadata.file.path}: the factors of its rotary frequencies are not by Llama 3's rule")
    return rule


def _names(family: Family, config: ModelConfig, file: GGUFFile, architecture: str) -> dict[str, str]:
    """Of each tensor of the file, the name that transformers has for it. Raises: UsageError for a weight without one."""
    gguf = package()
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known, names = gguf.get_tensor_name_map(kind, config.layers), dict[str, str]()
    for theirs in family.places(config):
        target = known.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if target is not None:
            names[target] = theirs
    for name in file.tensors:
        if name not in names and name not in UNNEEDED:
            raise UsageError(f"{file.path}: '{name[:80]}' is the name of no weight of a {family.model_type} model")
    return names


def _weights(
    file: GGUFFile, architecture: Architecture, config: ModelConfig, names: dict[str, str], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of each tensor, the largest first: their second copies are gone before the model has grown."""
    for stored in sorted(file.tensors.values(), key=lambda one: -one.numbers):
        theirs = names.get(stored.name)
        if theirs is not None:
            yield theirs, architecture.restored(theirs, read_tensor(file, stored.name, dtype), config)


def _llama_like(metadata: Metadata) -> dict[str, Any]:
    heads, tensors = metadata.whole("attention.head_count"), metadata.file.tensors
    window = metadata.get("attention.sliding_window")
    rotated = metadata.whole("rope.dimension_count", metadata.whole("attention.key_length", 1))
    key = metadata.get("attention.key_length")
    if key is not None and "rope.dimension_count" in _own_keys(metadata) and rotated != key:
        raise UsageError(
            f"{metadata.file.path}: {rotated} of {key} features of a head are rotated, which is not supported"
        )
    if window and metadata.whole("attention.sliding_window") < metadata.whole("context_length"):
        raise UsageError(f"{metadata.file.path}: a sliding window of {window} tokens is not supported")
    return {
        "num_key_value_heads": metadata.whole("attention.head_count_kv", heads),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }


def _own_keys(metadata: Metadata) -> set[str]:
    before = f"{metadata.architecture}."
    return {key.removeprefix(before) for key in metadata.file.metadata if key.startswith(before)}


def _gpt_neox(metadata: Metadata) -> dict[str, Any]:
    head_width = metadata.whole("embedding_length") // metadata.whole("attention.head_count")
    rotated = metadata.whole("rope.dimension_count", head_width)
    return {
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": metadata.get("use_parallel_residual", True) is not False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": metadata.number("rope.freq_base", 10000.0),
            "partial_rotary_factor": rotated / max(1, head_width),
        },
        "hidden_act": "gelu",
        "attention_bias": "blk.0.attn_qkv.bias" in metadata.file.tensors,
    }


def _same(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    return weight


def _apart(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """The rows of a llama's queries and keys: features that are rotated together are neighbours in the file, and half a head
    apart with transformers."""
    heads = {"q_proj": config.heads, "k_proj": config.key_value_heads}.get(name.split(".")[-2])
    if heads is None or weight.shape[0] != heads * config.head_width:
        return weight  # one of another shape is refused when it is put in its place
    return weight.view(heads, config.head_width // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


def _interleaved(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """The query, key and value of a head together, as transformers has a gpt_neox; the file has all queries first."""
    if "query_key_value" not in name or weight.shape[0] != 3 * config.heads * config.head_width:
        return weight
    return weight.view(3, config.heads, config.head_width, -1).transpose(0, 1).reshape(weight.shape)


ARCHITECTURES = {
    "llama": Architecture("llama", _llama_like, _apart),
    "qwen2": Architecture("qwen2", _llama_like, _same),
    "qwen3": Architecture("qwen3", _llama_like, _same),
    "gptneox": Architecture("gpt_neox", _gpt_neox, _interleaved),
}
"""By llama.cpp's name. A mistral is a llama there."""
