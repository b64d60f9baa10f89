"""The text of an answer, from tokens that come one by one, up to where a stop string begins."""

from collections.abc import Sequence
from typing import Protocol

from shoestring.decode.stop_strings import StopStrings


class Detokenizer(Protocol):
    """Makes text of tokens."""

    def push(self, token: int) -> str:
        """The text that this token completes."""
        ...

    def finish(self) -> str:
        """What is left when no more tokens come."""
        ...


class AnswerText:
    """Takes tokens, gives the text that is certain by then.

    stream: of a tokenizer. stops: strings of which any ends the text; it is no part of it.
    """

    def __init__(self, stream: Detokenizer, stops: Sequence[str] = ()) -> None:
        self._stream, self._strings = stream, StopStrings(stops)
        self.text = ""
        """All so far."""

    @property
    def stopped(self) -> str:
        """The stop string that came; '' while none has."""
        return self._strings.found

    def push(self, token: int) -> str:
        """Take a token in; return the new text. After a stop string there is none."""
        return self._put(self._strings.push(self._stream.push(token)))

    def finish(self) -> str:
        """What is left when no more tokens come."""
        return self._put(self._strings.push(self._stream.finish()) + self._strings.finish())

    def _put(self, piece: str) -> str:
        self.text += piece
        return piece
