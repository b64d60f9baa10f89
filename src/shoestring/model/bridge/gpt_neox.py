"""The bridge of GPT-NeoX: Pythia, and GPT-NeoX-20B."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from shoestring.config import Choice, build
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model.bridge.family import Family, WeightPlace, parts_are, refuse, rope, rope_parameters
from shoestring.model.config import ModelConfig

ACTIVATIONS = {"gelu": "none", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh"}
"""Of a configuration's `hidden_act`, the option `approximate` of our channel mixer."""


@method(
    "model",
    kind="bridge",
    name="gpt_neox",
    paper="GPT-NeoX-20B: An Open-Source Autoregressive Language Model, arXiv:2204.06745",
    claim="gains far more from five shots than similarly sized GPT-3 and FairSeq models",
    cost="one copy of the weights, and the largest of them once more",
)
class GPTNeoX(Family):
    """Models of transformers' type 'gpt_neox': attention and feed-forward side by side, and partly rotated heads.

    theirs keep the query, key and value of a head together, and rotate its first features; ours keep all queries together,
    and rotate features half a head apart. So rows change their order, and no number changes.
    """

    model_type: ClassVar[str] = "gpt_neox"
    stock_class: ClassVar[str] = "GPTNeoXForCausalLM"
    unset: ClassVar[Mapping[str, Any]] = {
        "classifier_dropout": 0.1,
        "initializer_range": 0.02,
        "is_decoder": False,
        "use_cache": True,
    }
    aliases: ClassVar[Mapping[str, str]] = {"embed_out.weight": "lm_head.weight"}
    unneeded: ClassVar[str] = r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$"

    def config(self, theirs: Any) -> ModelConfig:
        options = {"qk_norm": False, "bias": "all" if theirs.attention_bias else "none", **rope(theirs)}
        head_width = theirs.hidden_size // theirs.num_attention_heads
        rotated = int(head_width * options["rotary_share"])
        refuse(
            theirs,
            {
                f"the activation '{theirs.hidden_act}'": theirs.hidden_act not in ACTIVATIONS,
                f"{rotated} rotated features a head, which are no pairs,": rotated % 2,
            },
        )
        return build(
            ModelConfig,
            {
                "layers": theirs.num_hidden_layers,
                "width": theirs.hidden_size,
                "heads": theirs.num_attention_heads,
                "head_width": head_width,
                "hidden": theirs.intermediate_size,
                "vocabulary": theirs.vocab_size,
                "context": theirs.max_position_embeddings,
                "token_mixer": Choice.of("model", "attention", kind="token mixer", **options),
                "channel_mixer": {"name": "gelu", "approximate": ACTIVATIONS[theirs.hidden_act], "bias": True},
                "norm": {"name": "layernorm", "epsilon": theirs.layer_norm_eps},
                "tied": theirs.tie_word_embeddings,
                "residual": "parallel" if theirs.use_parallel_residual else "pre_norm",
            },
        )

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        parts_are(config, token_mixer="attention", channel_mixer="gelu", norm="layernorm")
        if config.residual.name not in ("parallel", "pre_norm"):
            raise UsageError(f"the residual is 'parallel' or 'pre_norm', not '{config.residual.name}'")
        mixer, channels = config.token_mixer.options, config.channel_mixer.options
        for reason, wrong in {
            "queries and keys are not normalised": mixer["qk_norm"],
            "the attention has the bias all or none, not qkv": mixer["bias"] == "qkv",
            "the feed-forward layers have biases": not channels["bias"],
            "every query head has a key and value head of its own": config.key_value_heads != config.heads,
            "a head is width / heads wide": config.head_width * config.heads != config.width,
        }.items():
            if wrong:
                raise UsageError(reason)
        exact = channels["approximate"] == "none"
        return {
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "intermediate_size": config.hidden,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "max_position_embeddings": config.context,
            "rope_parameters": {**rope_parameters(config), "partial_rotary_factor": mixer["rotary_share"]},
            "layer_norm_eps": config.norm.options["epsilon"],
            "tie_word_embeddings": config.tied,
            "attention_bias": mixer["bias"] == "all",
            "hidden_act": "gelu" if exact else "gelu_pytorch_tanh",
            "use_parallel_residual": config.residual.name == "parallel",
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        }

    def places(self, config: ModelConfig) -> dict[str, WeightPlace]:
        order, both = _order(config), ("weight", "bias")
        found = {"gpt_neox.embed_in.weight": WeightPlace("embedding.weight")}
        found |= {f"gpt_neox.final_layer_norm.{kind}": WeightPlace(f"norm.{kind}") for kind in both}
        if not config.tied:
            found[self.head] = WeightPlace("head.weight")
        for layer in range(config.layers):
            theirs, ours = f"gpt_neox.layers.{layer}.", f"blocks.{layer}."
            for kind in both:
                found[f"{theirs}input_layernorm.{kind}"] = WeightPlace(f"{ours}token_norm.{kind}")
                found[f"{theirs}post_attention_layernorm.{kind}"] = WeightPlace(f"{ours}channel_norm.{kind}")
                found[f"{theirs}mlp.dense_h_to_4h.{kind}"] = WeightPlace(f"{ours}channel_mixer.input.{kind}")
                found[f"{theirs}mlp.dense_4h_to_h.{kind}"] = WeightPlace(f"{ours}channel_mixer.output.{kind}")
            for kind in both if config.token_mixer.options["bias"] == "all" else ("weight",):
                found[f"{theirs}attention.query_key_value.{kind}"] = WeightPlace(
                    f"{ours}token_mixer.qkv.{kind}", order=order
                )
                found[f"{theirs}attention.dense.{kind}"] = WeightPlace(f"{ours}token_mixer.output.{kind}")
        return found


def _order(config: ModelConfig) -> Tensor:
    """[3 heads head_width] int64: of each row of our queries, keys and values, the row of theirs."""
    width, half = config.head_width, config.head_width // 2
    turned = int(width * config.token_mixer.options["rotary_share"]) // 2
    plain = torch.arange(width)
    rotated, still = plain[: 2 * turned].view(2, turned), plain[2 * turned :].view(2, half - turned)
    paired = torch.cat((rotated, still), 1).flatten()  # ours: the first of each pair, then the second of each
    first = torch.arange(config.heads)[:, None] * 3 * width  # theirs: query, key and value of a head together
    query, key, value = first + paired, first + width + paired, first + 2 * width + plain
    return torch.cat((query.flatten(), key.flatten(), value.flatten()))
