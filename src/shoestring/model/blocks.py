"""A native model as its anatomy sees it."""

import abc
from typing import Any

import torch
from torch import nn

from shoestring.contract.model import LanguageModule
from shoestring.model.config import ModelConfig
from shoestring.model.narrow_embedding import NarrowEmbedding
from shoestring.model.stack import Stack


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

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the hidden states, and of the cache's keys and values."""

    @abc.abstractmethod
    def get_output_embeddings(self) -> nn.Embedding | nn.Linear:
        """The module whose `weight` [vocabulary, width] turns hidden states into logits; tied: the embedding."""

    @property
    @abc.abstractmethod
    def stack(self) -> Stack | None:
        """What goes through layers that are not all plain attention or the like; None: each is, and none is wrapped."""

    @property
    def narrows_head(self) -> bool:
        """Whether logits are made by the embedding's narrow table, and its product."""
        return self.config.embedding is not None and self.head is None

    @abc.abstractmethod
    def make_rotaries(self) -> None:
        """Make the tables of positions that the layers read, as the configuration has them now."""
