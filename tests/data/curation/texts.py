"""Sources of text in memory, and documents that are alike to a known degree."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from shoestring.data.curation.documents import Documents, open_documents

WORDS = tuple(
    f"{a}{b}{c}" for a in ("ka", "mo", "ti", "su", "re") for b in ("lan", "ber", "dol", "min") for c in "aeiou"
)


class Texts:
    """A `Source` of a list; how often it was read from the beginning is counted."""

    def __init__(self, texts: Sequence[str], name: str = "texts") -> None:
        self.list, self.name = list(texts), name
        self.notes: list[str] = []
        self.readings = 0

    def stamp(self) -> str:
        return f"{self.name} {len(self.list)} {hash(tuple(self.list))}"

    def texts(self) -> Iterator[str]:
        self.readings += 1
        yield from self.list


def opened(texts: Sequence[str], cache: Path) -> Documents:
    return open_documents(Texts(texts), cache)


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words))


def edited(text: str, share: float, generator: random.Random) -> str:
    """A text with that share of its words replaced."""
    words = text.split()
    for place in generator.sample(range(len(words)), round(share * len(words))):
        words[place] = f"new{generator.randrange(10**6)}"
    return " ".join(words)
