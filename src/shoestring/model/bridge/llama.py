"""The bridge of Llama, on which those of the families stand that differ from it in a detail."""

from collections.abc import Mapping
from typing import Any, ClassVar

from shoestring.config import Choice, build
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model.bridge.family import Family, WeightPlace, parts_are, refuse, rope, rope_parameters, window
from shoestring.model.config import ModelConfig

PLAIN = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
"""What the configuration files of all these families say, whatever the model."""

QWEN = {**PLAIN, "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False}
"""And those of Qwen."""


@method(
    "model",
    kind="bridge",
    name="llama",
    paper="LLaMA: Open and Efficient Foundation Language Models, arXiv:2302.13971",
    claim="LLaMA-13B outperforms GPT-3 (175B) on most benchmarks, from public data alone",
    cost="one copy of the weights, and the largest of them once more",
)
class Llama(Family):
    """Models of transformers' type 'llama', as native ones: Llama 1 to 3, SmolLM2 and many others."""

    model_type: ClassVar[str] = "llama"
    stock_class: ClassVar[str] = "LlamaForCausalLM"
    unset: ClassVar[Mapping[str, Any]] = {**PLAIN, "mlp_bias": False, "pretraining_tp": 1}
    qk_norm: ClassVar[bool] = False
    bias: ClassVar[str | None] = None
    """Which layers of attention have a bias. None: what the configuration's `attention_bias` says, all or none."""
    even: ClassVar[bool] = True
    """Whether the stock class wants its heads to divide its width, whatever the width of a head."""

    def config(self, theirs: Any) -> ModelConfig:
        options = {"qk_norm": self.qk_norm, "epsilon": theirs.rms_norm_eps, **rope(theirs)}
        options["bias"] = self.bias or ("all" if theirs.attention_bias else "none")
        refuse(
            theirs,
            {
                "biases in its feed-forward layers": getattr(theirs, "mlp_bias", False),
                f"the activation '{theirs.hidden_act}'": theirs.hidden_act not in ("silu", "swish"),
                "partly rotated heads": options["rotary_share"] != 1,
                window(theirs): window(theirs),
            },
        )
        return build(
            ModelConfig,
            {
                "layers": theirs.num_hidden_layers,
                "width": theirs.hidden_size,
                "heads": theirs.num_attention_heads,
                "key_value_heads": theirs.num_key_value_heads,
                "head_width": getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
                "hidden": theirs.intermediate_size,
                "vocabulary": theirs.vocab_size,
                "context": theirs.max_position_embeddings,
                "token_mixer": Choice.of("model", "attention", kind="token mixer", **options),
                "norm": {"name": "rmsnorm", "epsilon": theirs.rms_norm_eps},
                "tied": theirs.tie_word_embeddings,
            },
        )

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        parts_are(config, token_mixer="attention", channel_mixer="swiglu", norm="rmsnorm", residual="pre_norm")
        mixer, epsilon = config.token_mixer.options, config.norm.options["epsilon"]
        bias = mixer["bias"]
        if mixer["qk_norm"] != self.qk_norm:
            raise UsageError(f"queries and keys are {'' if self.qk_norm else 'not '}normalised")
        if mixer["qk_norm"] and mixer["epsilon"] != epsilon:
            raise UsageError(f"one epsilon, and not two: {epsilon} and token_mixer's {mixer['epsilon']}")
        if bias == "qkv" if self.bias is None else bias != self.bias:
            raise UsageError(f"the attention has the bias {self.bias or 'all or none'}, not {bias}")
        if mixer["rotary_share"] != 1:
            raise UsageError("all features of a head are rotated")
        if self.even and config.width % config.heads:
            raise UsageError(f"heads must divide the width: {config.heads} and {config.width}")
        settings = {
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "intermediate_size": config.hidden,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_value_heads,
            "head_dim": config.head_width,
            "max_position_embeddings": config.context,
            "rope_parameters": rope_parameters(config),
            "rms_norm_eps": epsilon,
            "tie_word_embeddings": config.tied,
        }
        return settings if self.bias else {**settings, "attention_bias": bias == "all"}

    def places(self, config: ModelConfig) -> dict[str, WeightPlace]:
        query, key, hidden = config.heads * config.head_width, config.key_value_heads * config.head_width, config.hidden
        bias = config.token_mixer.options["bias"]
        found = {
            "model.embed_tokens.weight": WeightPlace("embedding.weight"),
            "model.norm.weight": WeightPlace("norm.weight"),
        }
        if not config.tied:
            found[self.head] = WeightPlace("head.weight")
        for layer in range(config.layers):
            theirs, ours = f"model.layers.{layer}.", f"blocks.{layer}."
            found[f"{theirs}input_layernorm.weight"] = WeightPlace(f"{ours}token_norm.weight")
            for kind in ("weight", "bias") if bias != "none" else ("weight",):
                qkv = f"{ours}token_mixer.qkv.{kind}"
                found[f"{theirs}self_attn.q_proj.{kind}"] = WeightPlace(qkv, 0, query)
                found[f"{theirs}self_attn.k_proj.{kind}"] = WeightPlace(qkv, query, key)
                found[f"{theirs}self_attn.v_proj.{kind}"] = WeightPlace(qkv, query + key, key)
            for kind in ("weight", "bias") if bias == "all" else ("weight",):
                found[f"{theirs}self_attn.o_proj.{kind}"] = WeightPlace(f"{ours}token_mixer.output.{kind}")
            if self.qk_norm:
                found[f"{theirs}self_attn.q_norm.weight"] = WeightPlace(f"{ours}token_mixer.query_norm.weight")
                found[f"{theirs}self_attn.k_norm.weight"] = WeightPlace(f"{ours}token_mixer.key_norm.weight")
            found[f"{theirs}post_attention_layernorm.weight"] = WeightPlace(f"{ours}channel_norm.weight")
            found[f"{theirs}mlp.gate_proj.weight"] = WeightPlace(f"{ours}channel_mixer.gate_up.weight", 0, hidden)
            found[f"{theirs}mlp.up_proj.weight"] = WeightPlace(f"{ours}channel_mixer.gate_up.weight", hidden, hidden)
            found[f"{theirs}mlp.down_proj.weight"] = WeightPlace(f"{ours}channel_mixer.output.weight")
        return found
