"""The bridge of Qwen3: a Llama whose queries and keys are normalised."""

from collections.abc import Mapping
from typing import Any, ClassVar

from shoestring.method import method
from shoestring.model.bridge.llama import QWEN, Llama
from shoestring.model.config import ModelConfig


@method(
    "model",
    kind="bridge",
    name="qwen3",
    paper="Qwen3 Technical Report, arXiv:2505.09388",
    claim="one model that thinks and answers at once, in 119 languages, at 0.6 to 235 billion parameters",
    cost="one copy of the weights, and the largest of them once more",
)
class Qwen3(Llama):
    """Models of transformers' type 'qwen3', the dense ones."""

    model_type: ClassVar[str] = "qwen3"
    stock_class: ClassVar[str] = "Qwen3ForCausalLM"
    unset: ClassVar[Mapping[str, Any]] = QWEN
    qk_norm: ClassVar[bool] = True
    even: ClassVar[bool] = False

    def written(self, config: ModelConfig) -> dict[str, Any]:
        return {**super().written(config), "layer_types": ["full_attention"] * config.layers}
