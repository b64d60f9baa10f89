"""The text that models are measured on: documents, the same for every tokenizer."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from shoestring.data.config import DataConfig
from shoestring.data.corpus import open_corpus
from shoestring.data.reading import READER
from shoestring.data.survey import Key, digest, survey
from shoestring.errors import UsageError
from shoestring.log_lines import held_back


@dataclass(frozen=True)
class Text:
    """What is read.

    documents: in an order that their content alone decides, no two the same.
    corpus: where they are from, as it was named.
    heldout: the share of the corpus that they were chosen from; None: the whole.
    total: how many documents there were to choose from, copies among them.
    """

    documents: tuple[str, ...]
    corpus: str
    heldout: float | None
    total: int

    @property
    def bytes(self) -> int:
        """Of UTF-8 text."""
        return sum(len(document.encode()) for document in self.documents)

    @property
    def said(self) -> str:
        """What it is, in a few words."""
        part = "all" if self.heldout is None else "the held-out part"
        count = len(self.documents)
        return f"{part} of {self.corpus}: {count:,} document{'s' * (count > 1)}, {self.bytes:,} bytes"


def read_text(config: DataConfig, characters: int, *, whole: bool = False) -> Text:
    """Documents of a corpus, about as many as make up so many characters: an even draw, by their hashes.

    config: the corpus, how it is read, and the share held out, as a run has it: the documents that a run with the same share
    holds out are those that are drawn from. Its tokenizer is not heeded.
    whole: draw from all documents.
    Raises: UsageError where the corpus cannot be read, holds no text, or too little to hold some out.
    """
    corpus = open_corpus(config.corpus, config.text)
    if whole:
        drawn, total = _drawn(((digest(document), document) for document in corpus.documents()), characters)
    else:
        split = survey(corpus.documents(), config.heldout, 0)
        if split.documents and not split.heldout_bytes:
            raise UsageError(
                f"corpus '{config.corpus}' has too few documents to hold some out: --all measures on all of it"
            )
        keyed = ((digest(document), document) for document in corpus.documents())
        with held_back(READER):  # the first reading has said it
            drawn, total = _drawn(((key, document) for key, document in keyed if split.holds_out(key)), characters)
    if not drawn:
        raise UsageError(f"corpus '{config.corpus}' holds no text")
    return Text(drawn, config.corpus, None if whole else config.heldout, total)


def _drawn(keyed: Iterable[tuple[Key, str]], characters: int) -> tuple[tuple[str, ...], int]:
    """(the documents of lowest hash, as many as make up so many characters, one of each; how many were looked at).

    Memory for these alone. The half of the hash that is looked at has no part in what is held out.
    """
    heap: list[tuple[int, Key, str]] = []
    keys: set[Key] = set()
    held = total = 0
    for key, document in keyed:
        total += 1
        rank = -int.from_bytes(key[8:], "little")  # negative: the heap gives up the highest hash first
        if key in keys or (held >= characters and rank <= heap[0][0]):
            continue
        heapq.heappush(heap, (rank, key, document))
        keys.add(key)
        held += len(document)
        while held - len(heap[0][2]) >= characters:
            _, dropped, text = heapq.heappop(heap)
            keys.remove(dropped)
            held -= len(text)
    return tuple(text for _, _, text in sorted(heap, reverse=True)), total
