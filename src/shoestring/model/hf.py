"""The bridge to Hugging Face transformers: to a stock class, from one, and to a folder that anything there loads.

With query-key norm a model is a `Qwen3ForCausalLM`, without it a `LlamaForCausalLM`. Weights move over exactly: the
fused matrices are split by rows, or stacked again, and nothing is rounded; but a model with an `input_scale` or an
`output_scale`, which the stock classes have not, leaves with them multiplied into its embedding and its last norm.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shoestring import atomic
from shoestring.config import Choice, build
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_SETTINGS = "tokenizer_config.json"

_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
"""Our names, and those of transformers, of what is outside the blocks."""

_BLOCK = {
    "token_norm": ("input_layernorm",),
    "token_mixer.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "token_mixer.query_norm": ("self_attn.q_norm",),
    "token_mixer.key_norm": ("self_attn.k_norm",),
    "token_mixer.output": ("self_attn.o_proj",),
    "channel_norm": ("post_attention_layernorm",),
    "channel_mixer.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "channel_mixer.output": ("mlp.down_proj",),
}
"""The same within a block; several names are stacked, in this order, in one matrix of ours."""


def to_transformers(model: Transformer) -> "PreTrainedModel":
    """A copy on the CPU as a `Qwen3ForCausalLM` or `LlamaForCausalLM`, of the same type, with the same logits.

    Raises: UsageError where no stock class holds the architecture.
    """
    from transformers import AutoModelForCausalLM

    settings = _settings(model.config)
    with torch.random.fork_rng(devices=[]):  # the weights it draws are replaced: leave the caller's generator alone
        copy = AutoModelForCausalLM.from_config(settings)
    copy.to(model.dtype).load_state_dict(_their_weights(model), strict=True)
    return copy.eval()


def from_transformers(source: "PreTrainedModel") -> Transformer:
    """A copy on the CPU of a Qwen3 or Llama model as a `Transformer`, of the same type, with the same logits.

    Raises: UsageError for another architecture, or for a feature of these two that this model has not.
    """
    with torch.random.fork_rng(devices=[]):
        model = Transformer(_our_config(source.config))
    theirs = source.state_dict()
    ours = {name: torch.cat([theirs[part] for part in parts]) for name, parts in _names(model).items()}
    model.to(source.dtype).load_state_dict(ours, strict=True)
    return model


def export(
    model: Transformer,
    tokenizer: Path | None,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    end: int | None = None,
) -> None:
    """Write `folder` for `AutoModelForCausalLM.from_pretrained` (safetensors) and `AutoTokenizer` to load.

    tokenizer: the folder of the tokenizer's files; None = no tokenizer. They are copied, and its tokenizer_config.json is
    given the model's context as `model_max_length` and, where it names no pad token, its end token as that.
    dtype: of the weights.
    end: the id of the token at which generation stops, and which fills up its batches.
    Nothing appears at `folder` unless all of it is written.

    Raises: UsageError where `folder` holds something, or no stock class holds the architecture.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists already: export into a new folder")
    copy = to_transformers(model).to(dtype)
    copy.config.eos_token_id = copy.generation_config.eos_token_id = end
    # not in copy.config: its embedding would take no gradient for that token, which also separates documents
    copy.generation_config.pad_token_id = end
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the caller's own display is on the screen
    with atomic.directory(folder) as temporary:
        copy.save_pretrained(temporary)
        if shown:
            logging.enable_progress_bar()
        for file in sorted(tokenizer.iterdir()) if tokenizer else ():
            if file.is_file():
                shutil.copyfile(file, temporary / file.name)
        if (temporary / TOKENIZER_SETTINGS).exists():
            _complete(temporary / TOKENIZER_SETTINGS, model.config.context)


def _complete(path: Path, context: int) -> None:
    """Add what `Trainer`, data collators and truncation need to know of a tokenizer."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model_max_length"] = context
    if not settings.get("pad_token") and settings.get("eos_token"):
        settings["pad_token"] = settings["eos_token"]
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _names(model: Transformer) -> dict[str, tuple[str, ...]]:
    """Each weight of ours, and the weights of transformers that it is, stacked."""
    names: dict[str, tuple[str, ...]] = {}
    for ours in model.state_dict():
        if ours in _TOP:
            names[ours] = (_TOP[ours],)
        else:
            _, index, part = ours.removesuffix(".weight").split(".", 2)
            names[ours] = tuple(f"model.layers.{index}.{theirs}.weight" for theirs in _BLOCK[part])
    return names


def _their_weights(model: Transformer) -> dict[str, Tensor]:
    config, names = model.config, _names(model)
    query, key = config.heads * config.head_width, config.key_value_heads * config.head_width
    rows = {1: None, 2: [config.hidden, config.hidden], 3: [query, key, key]}
    theirs: dict[str, Tensor] = {}
    for ours, weight in model.state_dict().items():
        sizes = rows[len(names[ours])]
        theirs.update(zip(names[ours], weight.split(sizes) if sizes else (weight,), strict=True))
    embedding, norm = _TOP["embedding.weight"], _TOP["norm.weight"]
    if config.input_scale != 1:
        theirs[embedding] = theirs[embedding] * config.input_scale
    # a tied embedding is also the head, which the last norm then puts right
    last = config.output_scale / config.input_scale if config.tied else config.output_scale
    if last != 1:
        theirs[norm] = theirs[norm] * last
    if config.tied:
        theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"]
    return theirs


def _settings(config: ModelConfig) -> Any:
    """The configuration of the stock class that holds this architecture."""
    from transformers import LlamaConfig, Qwen3Config

    for choice, held in (
        (config.token_mixer, "attention"),
        (config.channel_mixer, "swiglu"),
        (config.norm, "rmsnorm"),
    ):
        if choice.name != held:
            raise UsageError(f"no stock transformers class has the {choice.kind} '{choice.name}', only '{held}'")
    mixer, epsilon = config.token_mixer.options, config.norm.options["epsilon"]
    if mixer["qk_norm"] and mixer["epsilon"] != epsilon:
        raise UsageError(f"Qwen3 has one epsilon, this model two: {epsilon} and token_mixer's {mixer['epsilon']}")
    if not mixer["qk_norm"] and config.width % config.heads:
        raise UsageError(f"Llama's heads must divide its width: {config.heads} and {config.width}")
    return (Qwen3Config if mixer["qk_norm"] else LlamaConfig)(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        head_dim=config.head_width,
        max_position_embeddings=config.context,
        rope_parameters={"rope_type": "default", "rope_theta": mixer["rope_theta"]},
        rms_norm_eps=epsilon,
        tie_word_embeddings=config.tied,
        bos_token_id=None,
        eos_token_id=None,
    )


def _our_config(theirs: Any) -> ModelConfig:
    """The configuration of ours that a Qwen3 or Llama configuration describes."""
    if theirs.model_type not in ("qwen3", "llama"):
        raise UsageError(f"a transformers model of type '{theirs.model_type}' has no counterpart: qwen3 and llama have")
    rope = theirs.rope_parameters
    for feature, present in {
        "biases": theirs.attention_bias or getattr(theirs, "mlp_bias", False),
        f"the activation '{theirs.hidden_act}'": theirs.hidden_act not in ("silu", "swish"),
        f"{rope['rope_type']} rotary scaling": rope["rope_type"] != "default",
        "a sliding window": getattr(theirs, "sliding_window", None) is not None,
    }.items():
        if present:
            raise UsageError(f"a {theirs.model_type} model with {feature} has no counterpart")
    mixer = {"qk_norm": theirs.model_type == "qwen3", "rope_theta": rope["rope_theta"], "epsilon": theirs.rms_norm_eps}
    return build(
        ModelConfig,
        {
            "layers": theirs.num_hidden_layers,
            "width": theirs.hidden_size,
            "heads": theirs.num_attention_heads,
            "key_value_heads": theirs.num_key_value_heads,
            "head_width": theirs.head_dim,
            "hidden": theirs.intermediate_size,
            "vocabulary": theirs.vocab_size,
            "context": theirs.max_position_embeddings,
            "token_mixer": Choice.of("model", "attention", kind="token mixer", **mixer),
            "norm": {"name": "rmsnorm", "epsilon": theirs.rms_norm_eps},
            "tied": theirs.tie_word_embeddings,
        },
    )
