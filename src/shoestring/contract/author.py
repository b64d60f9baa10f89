"""A model that answers instructions: what making text by a model asks of it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

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
