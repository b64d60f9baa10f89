"""Kinds of text that are found in text itself, and any text as a mixture of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shoestring.data.curation.documents import BATCH
from shoestring.data.curation.linear_scorer import BUCKETS, features, sklearn
from shoestring.data.text_batches import batched

TEMPERATURE = 0.1
"""Of the softmax over squared distances: how sharply a document is of the kind whose centre is nearest."""


@dataclass(frozen=True, eq=False)
class MetaDomains:
    """Clusters of documents. weights: float32 [BUCKETS], by inverse document frequency. directions: float32 [dimensions, BUCKETS].
    centres: float32 [clusters, dimensions]."""

    weights: np.ndarray
    directions: np.ndarray
    centres: np.ndarray

    @classmethod
    def found(cls, texts: Sequence[str], clusters: int, dimensions: int, seed: int) -> "MetaDomains":
        """Clusters of these texts: TF-IDF of hashed words, its leading singular vectors, k-means."""
        counts = features(list(texts))
        seen = np.bincount(counts.indices, minlength=BUCKETS)
        weights = np.log((1 + counts.shape[0]) / (1 + seen)).astype(np.float32)
        rows = counts.multiply(weights).tocsr()
        dimensions = max(1, min(dimensions, counts.shape[0] - 1))
        svd = sklearn("decomposition").TruncatedSVD(dimensions, random_state=seed)
        vectors = _unit(svd.fit_transform(rows))
        means = sklearn("cluster").MiniBatchKMeans(
            min(clusters, len(vectors)), random_state=seed, n_init=3, batch_size=1024
        )
        means.fit(vectors)
        return cls(weights, svd.components_.astype(np.float32), means.cluster_centers_.astype(np.float32))

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dimensions], of unit length each."""
        return _unit(features(list(texts)).multiply(self.weights).tocsr() @ self.directions.T)

    def distances(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, clusters]: squared distances from the centres."""
        vectors = self.vectors(texts)
        products = vectors @ self.centres.T
        return np.maximum((vectors**2).sum(1, keepdims=True) + (self.centres**2).sum(1) - 2 * products, 0)

    def shares(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [n, clusters]: how much each text is of each kind, 1 in all: a softmax of negative squared distances."""
        logits = -self.distances(texts).astype(np.float64) / TEMPERATURE
        found = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def vector(self, texts: Iterable[str]) -> np.ndarray:
        """float64 [clusters]: the domain vector of a data set, the mean of its documents' shares weighted by their length."""
        total, size = np.zeros(len(self.centres)), 0.0
        for some in batched(texts, BATCH):
            lengths = np.array([len(text) for text in some], dtype=np.float64)
            total += lengths @ self.shares(some)
            size += lengths.sum()
        return total / max(size, 1.0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
