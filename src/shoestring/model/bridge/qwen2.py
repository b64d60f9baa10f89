"""The bridge of Qwen2 and Qwen2.5: a Llama whose queries, keys and values have biases."""

from collections.abc import Mapping
from typing import Any, ClassVar

from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model.bridge.llama import QWEN, Llama
from shoestring.model.config import ModelConfig


@method(
    "model",
    kind="bridge",
    name="qwen2",
    paper="Qwen2 Technical Report, arXiv:2407.10671",
    claim="surpasses most prior open-weight models, Qwen1.5 among them, at 0.5 to 72 billion parameters",
    cost="one copy of the weights, and the largest of them once more",
)
class Qwen2(Llama):
    """Models of transformers' type 'qwen2'."""

    model_type: ClassVar[str] = "qwen2"
    stock_class: ClassVar[str] = "Qwen2ForCausalLM"
    unset: ClassVar[Mapping[str, Any]] = QWEN
    bias: ClassVar[str | None] = "qkv"

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        settings = super().settings(config)
        if config.head_width * config.heads != config.width:
            raise UsageError(f"a head is width / heads = {config.width / config.heads:g} wide, not {config.head_width}")
        del settings["head_dim"]  # no setting of this class
        return settings

    def written(self, config: ModelConfig) -> dict[str, Any]:
        return {**super().written(config), "layer_types": ["full_attention"] * config.layers}
