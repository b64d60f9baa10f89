"""k-means whose clusters are of equal size."""

from typing import Literal

import numpy as np

from shoestring.data.clusters.assignment import balanced
from shoestring.method import Iterations, method

Labelled = tuple[np.ndarray, np.ndarray]
"""(centres float32 [k, d], labels int64 [n])."""


def squared_distances(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """float32 [..., k]: |h - c|^2 of vectors [..., d] from centres [k, d]."""
    products = vectors @ centres.T
    squares = (vectors**2).sum(axis=-1, keepdims=True) + (centres**2).sum(axis=-1)
    return np.maximum(squares - 2 * products, 0)


@method(
    "data",
    kind="clusters",
    name="balanced_kmeans",
    paper="Scaling Expert Language Models with Unsupervised Domain Discovery, arXiv:2303.14177; "
    "Breaking the Curse of Multilinguality with Cross-lingual Expert Language Models, arXiv:2401.10440",
    claim="experts on clusters of balanced size beat dense models at equal compute; with several languages (X-ELM), "
    "jointly trained ones in all of them",
    cost="documents x clusters x dimensions operations an iteration, some tens of iterations, a few starts",
)
def balanced_kmeans(
    vectors: np.ndarray,
    tokens: np.ndarray,
    clusters: int,
    seed: int,
    *,
    balance: Literal["tokens", "documents", "none"] = "tokens",
    iterations: Iterations = 50,
    starts: Iterations = 4,
) -> Labelled:
    """Lloyd's k-means under Euclidean distance, each document given to a cluster that still has room.

    The clustering of Gururangan et al. (2023), arXiv:2303.14177, and of the TF-IDF experts of Blevins et al. (2024),
    arXiv:2401.10440. vectors: [n, d], tokens: [n] of each document. balance: what is made equal; 'none' is plain
    k-means. The centres start as k-means++ chooses them, and of several `starts` the one of least within-cluster
    squared distance is kept. Papers and code balance the number of documents, by an auction; here tokens are balanced by
    default, as each expert has a like budget to spend on its cluster, by transport prices (`assignment`).

    iterations: rounds of assigning and averaging, at most.
    starts: how often it begins anew.
    """
    generator = np.random.default_rng(seed)
    weights = {"tokens": tokens, "documents": None, "none": None}[balance]
    best, least = None, np.inf
    for _ in range(starts):
        centres = plus_plus(vectors, clusters, generator)
        labels = np.full(len(vectors), -1)
        for _ in range(iterations):
            costs = squared_distances(vectors, centres)
            now = costs.argmin(axis=1) if balance == "none" else balanced(costs, weights)
            if (now == labels).all():
                break
            labels = now
            centres = means(vectors, labels, centres)
        spread = float(squared_distances(vectors, centres)[np.arange(len(vectors)), labels].sum())
        if spread < least:
            best, least = (centres, labels), spread
    assert best is not None
    return best


def plus_plus(vectors: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """float32 [k, d]: first centres, each drawn with a chance in proportion to its squared distance from those before it
    (Arthur and Vassilvitskii, "k-means++", SODA 2007)."""
    chosen = [int(generator.integers(len(vectors)))]
    distance = squared_distances(vectors, vectors[chosen])[:, 0].astype(np.float64)
    while len(chosen) < clusters:
        distance[chosen] = 0
        total = distance.sum()
        free = np.setdiff1d(np.arange(len(vectors)), chosen)
        chance = distance[free] / total if total > 0 else np.full(len(free), 1 / len(free))
        chosen.append(int(generator.choice(free, p=chance / chance.sum())))
        distance = np.minimum(distance, squared_distances(vectors, vectors[chosen[-1:]])[:, 0])
    return vectors[chosen].astype(np.float32)


def means(vectors: np.ndarray, labels: np.ndarray, before: np.ndarray) -> np.ndarray:
    """float32 [k, d]: the mean of each cluster's vectors; one without any keeps its centre."""
    sums = np.zeros(before.shape, dtype=np.float64)
    np.add.at(sums, labels, vectors)
    sizes = np.bincount(labels, minlength=len(before))[:, None]
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), before).astype(np.float32)
