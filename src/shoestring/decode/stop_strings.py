"""Stop strings: text that ends a generation where it appears, and is no part of it."""

from collections.abc import Sequence


class StopStrings:
    """Finds the first of some strings in text that comes piece by piece.

    What may be the beginning of a stop string is held back until the next piece decides.

    strings: none of them empty; there may be none at all.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise ValueError("a stop string needs at least one character")
        self._strings = tuple(strings)
        self._held = ""
        self.found = ""
        """The stop string that came; '' while none has."""

    def push(self, piece: str) -> str:
        """Take in a piece; return the text that is certain now. After `found` nothing more comes."""
        if self.found:
            return ""
        text = self._held + piece
        places = [(place, string) for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            # of two that begin together, the longer
            place, self.found = min(places, key=lambda each: (each[0], -len(each[1])))
            self._held = ""
            return text[:place]
        held = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What is still held back, where no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` are the beginning of `string`, which is not whole."""
    longest = min(len(string) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(string[:size])), 0)
