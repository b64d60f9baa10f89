"""Clusters that were found: kept in a file, asked which of them a document, or the beginning of a text, is nearest to."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save

from shoestring import atomic
from shoestring.config import Choice, Pick
from shoestring.data.clusters.balanced_kmeans import squared_distances
from shoestring.data.clusters.embedding import Embedding
from shoestring.data.clusters.features import document_tokens
from shoestring.data.dataset import Dataset
from shoestring.data.store import TokenStore
from shoestring.data.subset import document_bounds
from shoestring.errors import ShoestringError, UsageError

CLUSTERS = Pick("data", "clusters", default="balanced_kmeans")

FORMAT = "shoestring-clusters"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Clustering:
    """embedding: of documents. centres: float32 [k, dimensions]. labels: int64, the cluster of each training document.
    dataset: the fingerprint of the corpus they were found in."""

    embedding: Embedding
    centres: np.ndarray
    labels: np.ndarray
    dataset: str

    def __len__(self) -> int:
        return len(self.centres)

    def nearest(self, store: TokenStore, documents: np.ndarray | None = None) -> np.ndarray:
        """int64 [documents]: the nearest cluster of each document (None: all), its size notwithstanding."""
        return squared_distances(self.embedding.documents(store, documents), self.centres).argmin(axis=1)

    def distances(self, tokens: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """float32 [B, len(ends), k]: |h - c|^2 for the vector h of the first `end` tokens of each row of `tokens` [B, T]."""
        return squared_distances(self.embedding.prefixes(tokens, ends), self.centres)

    def members(self, cluster: int) -> np.ndarray:
        """int64, ascending: the training documents of a cluster."""
        return np.flatnonzero(self.labels == cluster)

    def write(self, path: Path) -> None:
        """Keep everything in one safetensors file."""
        arrays = {"vectors": self.embedding.vectors, "centres": self.centres, "labels": self.labels.astype(np.int64)}
        described = {
            "format": FORMAT,
            "version": str(VERSION),
            "ngrams": str(self.embedding.ngrams),
            "dataset": self.dataset,
        }
        atomic.write_bytes(path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=described))

    @classmethod
    def read(cls, path: Path) -> "Clustering":
        """Raises: ShoestringError where the file is missing, damaged or another's."""
        try:
            with safetensors.safe_open(path, "numpy") as file:
                described = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, safetensors.SafetensorError) as error:
            raise ShoestringError(f"no clusters can be read from {path}: {error}") from None
        if (described.get("format"), described.get("version")) != (FORMAT, str(VERSION)):
            raise ShoestringError(f"{path} holds no clusters of version {VERSION}")
        embedding = Embedding(arrays["vectors"], int(described["ngrams"]))
        return cls(embedding, arrays["centres"], arrays["labels"], described["dataset"])


def cluster(dataset: Dataset, clusters: int, seed: int, embedding: Choice, method: Choice) -> Clustering:
    """Cut the training documents of a dataset into clusters. embedding, method: of the kinds 'document embedding' and
    'clusters'. Equal arguments give equal clusters on one machine.

    Raises: UsageError where there are too few documents, or nothing tells them apart.
    """
    store = dataset.train
    documents = len(store.document_starts)
    if documents < clusters:
        raise UsageError(f"{documents} training documents cannot make {clusters} clusters: ask for fewer experts")
    made: Embedding = embedding.build(store, seed)
    tokens = np.diff(document_bounds(store))
    centres, labels = method.build(made.documents(store), tokens, clusters, seed)
    empty = np.setdiff1d(np.arange(clusters), labels)
    if len(empty):
        raise UsageError(f"{len(empty)} of {clusters} clusters have no document: ask for fewer experts")
    return Clustering(made, centres, labels, dataset.fingerprint)


def characteristic_tokens(
    store: TokenStore, labels: np.ndarray, clusters: int, vocabulary: int, count: int
) -> np.ndarray:
    """int64 [clusters, count]: tokens that tell a cluster from the others, the most telling first.

    By p ln(p / q), where p is the share of the cluster's documents that have the token, and q the share of all.
    """
    have = np.zeros((clusters, vocabulary))
    for document, label in enumerate(labels.tolist()):
        have[label, np.unique(document_tokens(store, document))] += 1
    sizes = np.bincount(labels, minlength=clusters)[:, None]
    share, overall = have / np.maximum(sizes, 1), have.sum(axis=0) / max(len(labels), 1)
    telling = share * np.log(np.where(share > 0, share, 1) / np.where(share > 0, overall, 1))
    return np.argsort(-telling, axis=1, kind="stable")[:, :count]
