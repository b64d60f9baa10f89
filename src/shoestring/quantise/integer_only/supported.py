"""Which models have an integer-only counterpart, and of what their parts are made."""

from typing import Any

from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.rotary_kinds import rotary_key
from shoestring.quantise.integer_only.attention import IntegerOnlyAttention
from shoestring.quantise.integer_only.channel_mixers import IntegerOnlyGELU, IntegerOnlySquaredReLU, IntegerOnlySwiGLU
from shoestring.quantise.integer_only.efficient_attention import IntegerOnlyEfficientAttention

TOKEN_MIXERS: dict[str, Any] = {
    "attention": IntegerOnlyAttention,
    "efficient_attention": IntegerOnlyEfficientAttention,
}
CHANNEL_MIXERS: dict[str, Any] = {
    "swiglu": IntegerOnlySwiGLU,
    "gelu": IntegerOnlyGELU,
    "squared_relu": IntegerOnlySquaredReLU,
}
NORMS = {"rmsnorm": False, "layernorm": True}
"""Of each whether it takes the mean away."""

EMBEDDINGS, RESIDUALS = ("nano",), ("pre_norm",)


def counterparts(config: ModelConfig) -> tuple[Any, Any]:
    """(of the token mixer, of the channel mixer) of a layer."""
    return TOKEN_MIXERS[config.token_mixer.name], CHANNEL_MIXERS[config.channel_mixer.name]


def norm_is_centred(config: ModelConfig) -> bool:
    """Whether the norms of a layer take the mean away."""
    return NORMS[config.norm.name]


def rotates(config: ModelConfig) -> bool:
    """Whether a layer has rotary positions."""
    return rotary_key(config) is not None


def require_supported(config: ModelConfig) -> None:
    """Raises: UsageError, naming the layer and what there is, for a model that has no integer-only counterpart."""
    if config.span:
        raise UsageError(f"no integer-only form: layers lie within a span ({config.span[0].span.name})")
    if not config.causal or config.hides:
        raise UsageError("no integer-only form: the model sees both ways or reads tokens that are not shown")
    if config.embedding is not None and config.embedding.name not in EMBEDDINGS:
        raise UsageError(_refused("the embedding", config.embedding.name, ("table", *EMBEDDINGS)))
    if config.norm.name not in NORMS:
        raise UsageError(_refused("the last norm", config.norm.name, NORMS))
    keys = set()
    for own, numbers in config.kinds():
        where = f"layer {numbers[0]}: the"
        for what, name, known in (
            ("token mixer", own.token_mixer.name, TOKEN_MIXERS),
            ("channel mixer", own.channel_mixer.name, CHANNEL_MIXERS),
            ("norm", own.norm.name, NORMS),
            ("residual", own.residual.name, RESIDUALS),
        ):
            if name not in known:
                raise UsageError(_refused(f"{where} {what}", name, known))
        keys.add(rotary_key(own))
    if len(keys - {None}) > 1:
        raise UsageError("no integer-only form: layers have different rotary positions, and one table is supported")


def _refused(what: str, name: str, known: Any) -> str:
    return f"{what} '{name}' has no integer-only form: supported are {', '.join(known)}"
