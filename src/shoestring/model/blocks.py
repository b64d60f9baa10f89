"""A native model as its anatomy sees it."""

import abc
from typing import Any

from torch import nn

from shoestring.contract.model import LanguageModule
from shoestring.model.config import ModelConfig
from shoestring.model.narrow_embedding import NarrowEmbedding


class Blocks(LanguageModule):
    """A native model as its anatomy sees it: embedding, blocks, norm, head. `Transformer` is one.

    config: of the model as it stands.
    narrow: between the embedding and the stream, where the configuration has one.
    norm: before the head.
    blocks: its layers.
    head: None where the embedding is the head too.
    """

    config: ModelConfig
    embedding: nn.Embedding
    narrow: NarrowEmbedding
    norm: Any
    blocks: nn.ModuleList
    head: nn.Linear | None

    @abc.abstractmethod
    def make_rotaries(self) -> None:
        """Make the tables of positions that the layers read, as the configuration has them now."""
