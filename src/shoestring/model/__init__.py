"""Models and their parts. `Transformer(ModelConfig(...))` is a model; `hf` bridges to transformers."""

from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer"]
