"""Rules of thumb that tell prose from what is none, each with the reason it gives."""

import re
from collections.abc import Callable
from typing import Annotated

import numpy as np
from annotated_types import Interval

from shoestring.data.curation.account import Account
from shoestring.data.curation.column import KEPT, Column
from shoestring.data.curation.documents import Documents
from shoestring.data.curation.shingles import digests, runs
from shoestring.method import Fraction, Positive, Whole, method

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
"""Words that English prose has."""

BULLETS = ("-", "*", "\u2022", "\u2023", "\u25e6", "\u2013")

GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
"""By length of a run of words: the most of a text's characters that its commonest run may make up."""

REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""By length of a run of words: the most of a text's characters that may lie in runs that occurred before."""

_LETTER = re.compile(r"[^\W\d_]")
_PARAGRAPHS = re.compile(r"\n{2,}")

REASONS = (
    "too few words",
    "too many words",
    "mean length of words out of range",
    "too many # or ellipses a word",
    "too many lines that begin with a bullet",
    "too many lines that end with an ellipsis",
    "too few words with a letter",
    "too few of the commonest English words",
    "too many lines that occurred before",
    "too many paragraphs that occurred before",
    "too much text in lines that occurred before",
    "too much text in paragraphs that occurred before",
    "the commonest run of words makes up too much",
    "too much text in runs of words that occurred before",
)


@method(
    "data",
    kind="curation",
    name="quality_rules",
    paper="Scaling Language Models: Methods, Analysis & Insights from Training Gopher, arXiv:2112.11446",
    claim="MassiveText is filtered by these rules; its filtering improves downstream loss",
    cost="one reading of the text, about 1 ms for 10 kB",
)
class QualityRules:
    """The rules of Gopher: document by document, on words, lines and repetition. A document is dropped for the first it breaks.

    They are made for English prose. Characters of repeated runs of words are counted as the paper says, each once however
    many such runs overlap; the first occurrence of a run is not counted among them.

    least_words, most_words: of a document, separated by white space.
    shortest, longest: mean characters of a word.
    symbols: # and ellipses a word, at most.
    bullets: the most lines that begin with a bullet, as a share.
    ellipses: the most lines that end with an ellipsis, as a share.
    letters: the fewest words with a letter, as a share.
    stop_words: how many of 'the, be, to, of, and, that, have, with' it has, at least.
    repetition: scales the limits on repeated lines, paragraphs and runs of words: 1 is the paper's; 0: they are not looked at.
    """

    def __init__(
        self,
        *,
        least_words: Whole = 50,
        most_words: Whole = 100_000,
        shortest: Positive = 3.0,
        longest: Positive = 10.0,
        symbols: Fraction = 0.1,
        bullets: Fraction = 0.9,
        ellipses: Fraction = 0.3,
        letters: Fraction = 0.8,
        stop_words: Annotated[int, Interval(ge=0, le=8)] = 2,
        repetition: Annotated[float, Interval(ge=0, le=10)] = 1.0,
    ) -> None:
        self.options: dict[str, float] = {
            "least_words": least_words,
            "most_words": most_words,
            "shortest": shortest,
            "longest": longest,
            "symbols": symbols,
            "bullets": bullets,
            "ellipses": ellipses,
            "letters": letters,
            "stop_words": stop_words,
            "repetition": repetition,
        }

    def __call__(self, documents: Documents, account: Account) -> Column:
        found = documents.mapped("quality_rules", self.options, self._judged, account)
        return Column(np.asarray(found["rule"]), REASONS, {})

    def _judged(self, texts: list[str]) -> dict[str, np.ndarray]:
        return {"rule": np.array([self.broken(text) for text in texts], dtype=np.int16)}

    def broken(self, text: str) -> int:
        """The number in `REASONS` of the first rule that a text breaks; `KEPT` where it breaks none."""
        limit, words = self.options, text.split()
        if len(words) < limit["least_words"]:
            return 0
        if len(words) > limit["most_words"]:
            return 1
        lines = [line for line in text.splitlines() if line.strip()]
        count = max(len(words), 1)
        tests = (
            not limit["shortest"] <= sum(map(len, words)) / count <= limit["longest"],
            (text.count("#") + text.count("...") + text.count("\u2026")) / count > limit["symbols"],
            _share(lines, lambda line: line.lstrip().startswith(BULLETS)) > limit["bullets"],
            _share(lines, lambda line: line.rstrip().endswith(("...", "\u2026"))) > limit["ellipses"],
            sum(1 for word in words if _LETTER.search(word)) / count < limit["letters"],
            len(STOP_WORDS.intersection(word.lower() for word in words)) < limit["stop_words"],
        )
        for place, breaks in enumerate(tests, 2):
            if breaks:
                return place
        return self._repeats(text, lines, words) if limit["repetition"] else KEPT

    def _repeats(self, text: str, lines: list[str], words: list[str]) -> int:
        scale, size = self.options["repetition"], max(len(text), 1)
        paragraphs = [part for part in _PARAGRAPHS.split(text) if part.strip()]
        known, sizes = digests(words), np.array([len(word) for word in words], dtype=np.int64)
        (more_lines, in_lines), (more_parts, in_parts) = _before(lines), _before(paragraphs)
        tests = (
            more_lines / max(len(lines), 1) > 0.30 * scale,
            more_parts / max(len(paragraphs), 1) > 0.30 * scale,
            in_lines / size > 0.20 * scale,
            in_parts / size > 0.20 * scale,
            any(commonest(known, sizes, length) / size > most * scale for length, most in GRAMS.items()),
            any(repeated(known, sizes, length) / size > most * scale for length, most in REPEATED.items()),
        )
        return next((place for place, breaks in enumerate(tests, 8) if breaks), KEPT)


def _share(lines: list[str], test: Callable[[str], bool]) -> float:
    return sum(map(test, lines)) / max(len(lines), 1)


def _before(parts: list[str]) -> tuple[int, int]:
    """(how many parts occurred before, characters in them)."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        seen.add(part)
    return count, characters


def commonest(words: np.ndarray, sizes: np.ndarray, length: int) -> int:
    """Characters of words in all occurrences of the commonest run of `length` words (of the longest of several); 0 where none
    occurs twice. words: uint64 [T], a digest of each. sizes: [T], characters of each."""
    if len(words) < length:
        return 0
    _, first, counts = np.unique(runs(words, length), return_index=True, return_counts=True)
    most = int(counts.max())
    before = np.concatenate([[0], np.cumsum(sizes)])
    longest = max((before[first + length] - before[first])[counts == most].tolist())
    return most * int(longest) if most > 1 else 0


def repeated(words: np.ndarray, sizes: np.ndarray, length: int) -> int:
    """Characters of words that lie in a run of `length` words which occurred before, each word counted once. As `commonest`."""
    if len(words) < length:
        return 0
    found = runs(words, length)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(found)))
    marks = np.zeros(len(words) + 1, dtype=np.int64)
    np.add.at(marks, again, 1)
    np.add.at(marks, again + length, -1)
    return int(sizes[np.cumsum(marks[:-1]) > 0].sum())
