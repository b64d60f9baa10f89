"""The bridge of Mistral: a Llama without biases, some of whose models see a window of the context only."""

from collections.abc import Mapping
from typing import Any, ClassVar

from shoestring.method import method
from shoestring.model.bridge.llama import PLAIN, Llama
from shoestring.model.config import ModelConfig


@method(
    "model",
    kind="bridge",
    name="mistral",
    paper="Mistral 7B, arXiv:2310.06825",
    claim="outperforms Llama 2 13B on every benchmark evaluated, with grouped queries and sliding windows",
    cost="one copy of the weights, and the largest of them once more",
)
class Mistral(Llama):
    """Models of transformers' type 'mistral' whose window is not shorter than their context."""

    model_type: ClassVar[str] = "mistral"
    stock_class: ClassVar[str] = "MistralForCausalLM"
    unset: ClassVar[Mapping[str, Any]] = PLAIN
    bias: ClassVar[str | None] = "none"
    even: ClassVar[bool] = False

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        return {**super().settings(config), "sliding_window": None}
