"""A model that writes: what is said becomes tokens that it reads, and the tokens that end its texts are known."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from shoestring.base.opened import Opened
from shoestring.data.chat import Chat, Message, Tool
from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode.constraints.guided import Grammars
from shoestring.errors import UsageError


@dataclass(frozen=True)
class Writer:
    """A model with all that is needed to let it write.

    opened: the model, and where it is from.
    tokenizer: its own.
    """

    opened: Opened
    tokenizer: TextTokenizer

    @classmethod
    def of(cls, opened: Opened) -> "Writer":
        """Raises: UsageError where the place has no tokenizer."""
        if opened.tokenizer is None:
            raise UsageError(f"{opened.about.place} has no tokenizer: text cannot be made its tokens")
        return cls(opened, opened.tokenizer)

    @property
    def context(self) -> int:
        """The most tokens that it reads."""
        return self.opened.model.about.context

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens of which any ends a text."""
        return frozenset({self.tokenizer.end, *self.opened.about.values.get("ends", ())})

    @cached_property
    def answer_ends(self) -> frozenset[int]:
        """Tokens of which any ends an answer to a chat. Raises: UsageError where it has no chat template."""
        return self.ends | self.chat.ends()

    @cached_property
    def chat(self) -> Chat:
        """Its template. Raises: UsageError where it has none."""
        template = self.opened.about.chat_template
        if template is None:
            raise UsageError(
                f"{self.opened.about.place} has no chat template, as models that were tuned to answer have"
            )
        return Chat(template, self.tokenizer)

    def text_ids(self, text: str) -> list[int]:
        """The tokens of a text to go on from."""
        ids = self.tokenizer.encode(text)
        return ids if self.tokenizer.begin is None else [self.tokenizer.begin, *ids]

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> list[int]:
        """The tokens of a chat that is to be answered. Raises: UsageError where the template refuses it."""
        return self.chat.ids(messages, tools)

    def grammars(self, ends: Iterable[int]) -> Grammars:
        """Makes constraints for texts that end with these tokens. Raises: UsageError where llguidance is not installed."""
        vocabulary = self.opened.model.about.vocabulary
        return Grammars(self.tokenizer, vocabulary, [end for end in ends if end < vocabulary])
