"""Copies of the same text."""

import numpy as np
import xxhash

from shoestring.data.curation.account import Account
from shoestring.data.curation.column import Column
from shoestring.data.curation.documents import Documents
from shoestring.method import method

REASON = "the same text as an earlier document"


@method(
    "data",
    kind="curation",
    name="exact_duplicates",
    claim="each text is kept once",
    cost="a sort of 16 bytes a document; with `normalise` one reading of the text",
)
class ExactDuplicates:
    """Keeps the first of the documents whose texts are equal, by a 128-bit digest (XXH3).

    Column `of`: the number of the first copy in the corpus; -1 for the first itself.

    normalise: compare letters and digits alone, in lower case, every run of others being one space.
    """

    def __init__(self, *, normalise: bool = False) -> None:
        self.normalise = normalise

    def __call__(self, documents: Documents, account: Account) -> Column:
        content = documents.content
        if self.normalise:
            content = documents.mapped("exact_duplicates", {"normalise": True}, _normalised, account)["content"]
        first = firsts(content)
        copy = first != np.arange(len(first))
        return Column.dropping(copy, REASON, {"of": np.where(copy, documents.numbers[first], -1)})


def firsts(content: np.ndarray) -> np.ndarray:
    """int64 [n]: the place of the first row that is equal to each row of uint64 [n, 2]."""
    if not len(content):
        return np.empty(0, np.int64)
    order = np.lexsort((content[:, 1], content[:, 0]))  # stable: of equal rows the first place comes first
    ordered = content[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    heads = order[new][np.cumsum(new) - 1]
    found = np.empty(len(order), dtype=np.int64)
    found[order] = heads
    return found


def _normalised(texts: list[str]) -> dict[str, np.ndarray]:
    digests = b"".join(xxhash.xxh3_128_digest(normalised(text).encode()) for text in texts)
    return {"content": np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)}


def normalised(text: str) -> str:
    """Letters and digits in lower case, every run of other characters being one space."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
