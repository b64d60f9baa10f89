"""The bridge of Qwen3: a Llama whose queries and keys are normalised."""

from typing import ClassVar

from shoestring.method import method
from shoestring.model.bridge.llama import Llama


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
    qk_norm: ClassVar[bool] = True
    even: ClassVar[bool] = False
