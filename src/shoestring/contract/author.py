"""A model that answers instructions, or goes on from vectors: what making text by a model asks of it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge


class AuthoredText(NamedTuple):
    """text: the answer. whole: the model ended it, rather than the limit of tokens."""

    text: str
    whole: bool


class Authored(NamedTuple):
    """texts: an answer to each instruction, in order. spent: what that took."""

    texts: tuple[AuthoredText, ...]
    spent: Charge = NOTHING


class Author(Protocol):
    """A model that was tuned to answer."""

    @property
    def digest(self) -> str:
        """Equal digests are equal weights, tokenizers and templates."""
        ...

    def answers(self, asked: Sequence[str], seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        """An answer to each instruction.

        seeds: of the draws for each. tokens: of an answer at most. temperature: of the draws; 0: the likeliest token.
        Raises: UsageError where an instruction is longer than the model reads.
        """
        ...


class PrefixAuthor(Protocol):
    """A frozen model that reads vectors in the place of tokens before a text. It need not be one that was tuned to answer."""

    @property
    def digest(self) -> str:
        """Equal digests are equal weights and tokenizers."""
        ...

    @property
    def embeddings(self) -> tuple[Tensor, float]:
        """(mean [width], standard deviation of an entry) of its tokens' embeddings: where the vectors lie that it knows."""
        ...

    def summaries(self, texts: Sequence[str], tokens: int) -> tuple[Tensor, Charge]:
        """[n, width] float32: the mean of the last hidden states of the first `tokens` tokens of each text."""
        ...

    def loss(self, prefixes: Tensor, texts: Sequence[str], tokens: int) -> tuple[Tensor, Charge]:
        """Nats a token, on average, of the first `tokens` tokens of each text after vectors of its own.

        prefixes: [n, length, width], by which the loss can be differentiated. What it took includes the backward pass.
        Raises: UsageError where vectors and tokens are more than the model reads.
        """
        ...

    def written(self, prefixes: Tensor, seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        """A text after each of the vectors [n, length, width]. The rest as `Author.answers`; raises as `loss`."""
        ...
