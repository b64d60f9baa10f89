"""A soft prompt: vectors in the place of some tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.adapter import Adapter
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError


class PromptEmbedding(Adapter):
    """An embedding in which the k-th place of a row that holds the token `placeholder` is the k-th vector of `prompt` [n, width].

    A row reads the whole prompt in one pass: its first n tokens are placeholders, as `ids` has them.
    """

    def __init__(self, base: nn.Module, prompt: Tensor, placeholder: int) -> None:
        super().__init__()
        self.base, self.placeholder = base, placeholder
        self.register_buffer("prompt", prompt)
        sized: Any = base
        self.num_embeddings, self.embedding_dim = sized.num_embeddings, sized.embedding_dim

    prompt: Tensor

    @property
    def weight(self) -> Tensor:
        """The base's own."""
        found: Tensor = self.base.weight  # type: ignore[assignment]
        return found

    @property
    def ids(self) -> list[int]:
        """The tokens that a prompt takes."""
        return [self.placeholder] * len(self.prompt)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.base(ids)
        if not self.active:
            return found
        marked = ids == self.placeholder
        place = (marked.cumsum(-1) - 1).clamp(0, len(self.prompt) - 1)
        return torch.where(marked[..., None], self.prompt[place].to(found.dtype), found)


def with_prompt(model: LanguageModule, length: int, placeholder: int) -> PromptEmbedding:
    """Put a prompt of `length` vectors before what a model reads, each the mean of its embeddings; all else is frozen.

    placeholder: a token that no text has. Raises: UsageError where there is no such token.
    """
    if not 0 <= placeholder < model.about.vocabulary:
        raise UsageError(f"placeholder = {placeholder} is no token of a vocabulary of {model.about.vocabulary}")
    model.requires_grad_(False)
    name = model.anatomy().embedding
    base: Any = model.get_submodule(name)
    some = torch.arange(min(model.about.vocabulary, 4096), device=model.device)
    with torch.no_grad():
        mean = base(some).float().mean(0)
    made = PromptEmbedding(base, mean.repeat(length, 1), placeholder)
    model.set_submodule(name, made)
    model.changed()
    return made
