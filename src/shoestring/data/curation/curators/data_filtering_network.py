"""A scorer that learnt from trusted text keeps what is like it."""

import hashlib

import numpy as np

from shoestring.data.config import TextOptions
from shoestring.data.corpus import open_corpus
from shoestring.data.curation.account import Account
from shoestring.data.curation.column import Column
from shoestring.data.curation.documents import Documents
from shoestring.data.curation.linear_scorer import LinearScorer
from shoestring.data.curation.ranking import beyond
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, Positive, Whole, method

REASON = "unlike the trusted text"


@method(
    "data",
    kind="curation",
    name="data_filtering_network",
    paper="Data Filtering Networks, arXiv:2309.17425",
    claim="a network trained on a small amount of high-quality data filters better than one that is better at the task itself",
    cost="a logistic regression on `sample` documents of each side; one reading of the text by a linear scorer",
)
class DataFilteringNetwork:
    """Keeps the documents that a classifier of trusted text against the pool finds likeliest to be trusted.

    The paper filters pairs of images and captions by a CLIP model that was trained on trusted pairs; for text the network is here a
    logistic regression on hashed words and pairs of words, of trusted documents against a draw from the corpus itself.
    Column `trusted`, log-odds.

    trusted: text of the quality that is wanted, as data.corpus names a corpus.
    keep: the share of the text that is kept.
    sample: documents of each side to learn from, at most.
    penalty: of the regression, on the squared weights.
    text_field: the field of its text, where the trusted corpus is .jsonl or .parquet.
    seed: of the draw from the corpus.
    """

    def __init__(
        self,
        *,
        trusted: str,
        keep: Fraction = 0.25,
        sample: Count = 20_000,
        penalty: Positive = 0.1,
        text_field: str = "text",
        seed: Whole = 0,
    ) -> None:
        self.trusted, self.keep, self.sample, self.penalty = trusted, keep, sample, penalty
        self.text_field, self.seed = text_field, seed

    def __call__(self, documents: Documents, account: Account) -> Column:
        mask = np.zeros(len(documents), dtype=bool)
        mask[documents.sample(self.sample, self.seed)] = True
        if not mask.any():
            return Column.dropping(mask, REASON, {"trusted": np.empty(0)})
        good = self._trusted()
        scorer = LinearScorer.of_classes(good, list(documents.only(mask)), self.penalty)
        found = documents.mapped(
            "data_filtering_network", {"scorer": scorer.digest}, lambda some: {"trusted": scorer(some)}, account
        )
        odds = np.asarray(found["trusted"])
        dropped = beyond(odds, documents.bytes, self.keep)
        return Column.dropping(dropped, REASON, {"trusted": odds}, [f"learnt from {len(good):,} trusted documents"])

    def _trusted(self) -> list[str]:
        """The trusted documents of lowest hash, `sample` at most."""
        corpus = open_corpus(self.trusted, TextOptions(self.text_field))
        found: list[tuple[bytes, str]] = []
        for text in corpus.documents():
            found.append((hashlib.blake2b(text.encode(), digest_size=8).digest(), text))
            if len(found) >= 2 * self.sample:
                found = sorted(found)[: self.sample]
        if not found:
            raise UsageError(f"data_filtering_network: {self.trusted} holds no text to trust")
        return [text for _, text in sorted(found)[: self.sample]]
