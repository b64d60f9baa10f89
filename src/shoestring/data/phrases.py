"""Whether a phrase stands in a corpus, how often, and where: an exact look through every document."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shoestring.errors import UsageError

SHOWN = 5
"""Places of a phrase that are kept."""

AROUND = 40
"""Characters that are shown before and after a phrase."""


@dataclass
class Found:
    """What is known of one phrase.

    times: it stands in the corpus, none overlapping. documents: that hold it.
    places: (the number of the document from 0, the phrase with what stands around it), of the first few.
    """

    phrase: str
    times: int = 0
    documents: int = 0
    places: list[tuple[int, str]] = field(default_factory=list)


def find_phrases(documents: Iterable[str], phrases: Sequence[str]) -> list[Found]:
    """Look for phrases in the documents, one pass for all, in the memory of one document.

    Any run of spaces and line ends in a phrase stands for any other; capital and small letters are told apart.

    After SweCTRL-Mini (arXiv:2304.13994), whose training text can be searched for a phrase. Theirs is an index; this reads the text
    anew, so that what it says is what the files hold.
    Raises: UsageError for a phrase without a word.
    """
    found = [Found(phrase) for phrase in phrases]
    for phrase in phrases:
        if not phrase.split():
            raise UsageError("an empty phrase stands everywhere: give a word or more")
    patterns = [re.compile(r"\s+".join(map(re.escape, phrase.split()))) for phrase in phrases]
    for number, document in enumerate(documents):
        for one, pattern in zip(found, patterns, strict=True):
            places = [match.span() for match in pattern.finditer(document)]
            one.times += len(places)
            one.documents += bool(places)
            for start, end in places[: SHOWN - len(one.places)]:
                shown = " ".join(document[max(0, start - AROUND) : end + AROUND].split())
                one.places.append((number, shown))
    return found
