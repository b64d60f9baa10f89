"""Models and their parts. `ModelConfig(...).build()` makes a `Transformer`; `hf` bridges to transformers."""

from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer"]
