"""A soft prompt a row: vectors in the place of the first tokens of each row of a pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.adapter import Adapter
from shoestring.contract.model import LanguageModule


class PrefixEmbedding(Adapter):
    """An embedding in which, within `before`, row i of a pass begins with vectors of its own, whatever tokens stand there.

    base: the embedding that stood here. takes_gradients: an embedding of no tokens; that it trains tells a model's `cost` that
    its first layer's inputs take gradients.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        sized: Any = base
        self.num_embeddings, self.embedding_dim = sized.num_embeddings, sized.embedding_dim
        self.takes_gradients = nn.Embedding.from_pretrained(torch.zeros(0, 1), freeze=False)
        self.prefixes: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The base's own."""
        found: Tensor = self.base.weight  # type: ignore[assignment]
        return found

    @contextmanager
    def before(self, prefixes: Tensor) -> Iterator[None]:
        """While the first n tokens of the rows of a pass are read as these vectors [rows, n, width]."""
        self.prefixes = prefixes
        try:
            yield
        finally:
            self.prefixes = None

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.base(ids)
        if self.prefixes is None or not self.active:
            return found
        if len(self.prefixes) != len(ids) or self.prefixes.shape[1] > ids.shape[1]:
            raise ValueError(f"vectors of the shape {list(self.prefixes.shape)} do not fit rows of {list(ids.shape)}")
        return torch.cat([self.prefixes.to(found.dtype), found[:, self.prefixes.shape[1] :]], 1)


def with_prefixes(model: LanguageModule) -> PrefixEmbedding:
    """Let the rows of a model begin with vectors of their own; the model is frozen."""
    model.requires_grad_(False)
    name = model.anatomy().embedding
    made = PrefixEmbedding(model.get_submodule(name))
    model.set_submodule(name, made)
    model.changed()
    return made
