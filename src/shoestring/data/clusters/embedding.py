"""Documents as unit vectors: a weighted sum of one vector for each hashed feature."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Interval

from shoestring.config import Pick
from shoestring.data.clusters.features import blocks, counts, hashed
from shoestring.data.store import TokenStore
from shoestring.errors import UsageError

if TYPE_CHECKING:
    import scipy.sparse

EMBEDDING = Pick("data", "document embedding", default="tfidf_svd")

Bits = Annotated[int, Interval(ge=8, le=24)]
"""The logarithm to base 2 of a number of buckets."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Turns tokens into vectors: h = sum over features f of tf_f v_f, divided by its length (a sum of length 0 stays 0).

    vectors: float32 [buckets, dimensions], v_f. ngrams: a feature is a hashed run of at most so many tokens. As the sum is
    over single occurrences, the vector of a text that grows is had by adding to that of its beginning.
    """

    vectors: np.ndarray
    ngrams: int

    @property
    def dimensions(self) -> int:
        return self.vectors.shape[1]

    def documents(self, store: TokenStore, documents: np.ndarray | None = None) -> np.ndarray:
        """float32 [documents, dimensions]: those of a store, by number (None: all), a block of them at a time."""
        documents = np.arange(len(store.document_starts)) if documents is None else documents
        buckets = len(self.vectors)
        parts = [counts(store, part, self.ngrams, buckets) @ self.vectors for part in blocks(store, documents)]
        return unit(np.concatenate(parts).astype(np.float32))

    def prefixes(self, tokens: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """float32 [B, len(ends), dimensions]: the vectors of the first `end` tokens of each row of `tokens` [B, T], for
        each of `ends`, which ascend."""
        places = hashed(tokens, self.ngrams, len(self.vectors))
        found = np.zeros((len(tokens), len(ends), self.dimensions), dtype=np.float32)
        running, start = np.zeros((len(tokens), self.dimensions), dtype=np.float32), 0
        for column, end in enumerate(ends.tolist()):
            part = places[:, start:end].reshape(len(tokens), -1)
            known = part < len(self.vectors)
            running = running + (self.vectors[np.where(known, part, 0)] * known[..., None]).sum(axis=1)
            found[:, column], start = running, end
        return unit(found)

    def flops_per_token(self) -> int:
        """Operations to add a token's features to a text's vector."""
        return self.ngrams * self.dimensions


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors [..., d] at length 1; those of length 0 as they are."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def sampled(documents: int, sample: int, seed: int) -> np.ndarray:
    """At most `sample` numbers of documents, ascending, drawn evenly by the seed."""
    if documents <= sample:
        return np.arange(documents)
    return np.sort(np.random.default_rng(seed).choice(documents, sample, replace=False))


def inverse_document_frequency(found: "scipy.sparse.csr_matrix", minimum: int) -> np.ndarray:
    """float32 [buckets]: idf_f = ln((1 + n) / (1 + df_f)), where df_f of n documents have the feature; 0 where fewer than
    `minimum` have. A feature of every document weighs nothing, which spares a list of stop words.

    Raises: UsageError where every feature weighs nothing.
    """
    documents = np.bincount(found.indices, minlength=found.shape[1])
    weights = np.log((1 + found.shape[0]) / (1 + documents)) * (documents >= minimum)
    if not weights.any():
        raise UsageError("the documents cannot be told apart: no run of tokens is in several of them and not in all")
    return weights.astype(np.float32)


def tfidf(store: TokenStore, documents: np.ndarray, ngrams: int, buckets: int, minimum: int) -> tuple[
    "scipy.sparse.csr_matrix", np.ndarray
]:  # fmt: skip
    """(rows of unit length [documents, buckets], idf [buckets]): tf_f idf_f, tf_f the plain number of occurrences."""
    found = counts(store, documents, ngrams, buckets)
    found.sum_duplicates()
    weights = inverse_document_frequency(found, minimum)
    rows = found.multiply(weights).tocsr()
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).reshape(-1))
    import scipy.sparse  # slow to load

    scale = scipy.sparse.diags(1 / np.where(lengths > 0, lengths, 1))
    return (scale @ rows).tocsr().astype(np.float32), weights
