"""Documents that hold text of a test set."""

import hashlib
from typing import Annotated

import numpy as np
from annotated_types import Interval

from shoestring.data.config import TextOptions
from shoestring.data.corpus import open_corpus
from shoestring.data.curation.account import Account
from shoestring.data.curation.column import Column
from shoestring.data.curation.documents import Documents
from shoestring.data.curation.shingles import runs, units
from shoestring.errors import UsageError
from shoestring.method import Count, method

REASON = "holds text of the test set"


@method(
    "data",
    kind="curation",
    name="decontamination",
    paper="Language Models are Few-Shot Learners, arXiv:2005.14165",
    claim="runs of 13 words in common with a test set mark what was leaked into training text",
    cost="one reading of the text; 8 bytes for each run of words of the test set",
)
class Decontamination:
    """Drops documents that share runs of `ngram` words with a test set.

    Words are compared in lower case, without punctuation. The paper cuts the run and 200 characters around it out of the
    document; here the document goes. Column `hits`: how many of its runs are in the test set.

    against: the test set, as data.corpus names a corpus; items of fewer than `ngram` words are passed over and counted.
    ngram: words of a run.
    hits: runs in common that a document is dropped for, at least.
    text_field: the field of its text, where the test set is .jsonl or .parquet.
    """

    def __init__(
        self,
        *,
        against: str,
        ngram: Annotated[int, Interval(ge=1, le=64)] = 13,
        hits: Count = 1,
        text_field: str = "text",
    ) -> None:
        self.against, self.ngram, self.hits, self.text_field = against, ngram, hits, text_field

    def __call__(self, documents: Documents, account: Account) -> Column:
        known, short = self._known()
        if not len(known):
            raise UsageError(
                f"decontamination: no item of {self.against} has {self.ngram} words: a lower ngram finds more"
            )

        def hits(texts: list[str]) -> dict[str, np.ndarray]:
            return {"hits": np.array([self._hits(text, known) for text in texts], dtype=np.int64)}

        options = {"known": hashlib.sha256(known.tobytes()).hexdigest(), "ngram": self.ngram}
        found = np.asarray(documents.mapped("decontamination", options, hits, account)["hits"])
        notes = (
            [f"{short:,} items of the test set have fewer than {self.ngram} words, and were not looked for"]
            if short
            else []
        )
        return Column.dropping(found >= self.hits, REASON, {"hits": found}, notes)

    def _known(self) -> tuple[np.ndarray, int]:
        """(uint64, ascending: the runs of the test set; how many items are too short to have one)."""
        found, short = [np.empty(0, np.uint64)], 0
        for text in open_corpus(self.against, TextOptions(self.text_field)).documents():
            words = units(text, "word")
            if len(words) < self.ngram:
                short += 1
            else:
                found.append(runs(words, self.ngram))
        return np.unique(np.concatenate(found)), short

    def _hits(self, text: str, known: np.ndarray) -> int:
        words = units(text, "word")
        if len(words) < self.ngram:
            return 0
        own = runs(words, self.ngram)
        places = np.minimum(np.searchsorted(known, own), len(known) - 1)
        return int((known[places] == own).sum())
