"""Latent semantic vectors: tf-idf of hashed runs of tokens, in the directions that carry most of a corpus's variation."""

import numpy as np

from shoestring.data.clusters.embedding import Bits, Embedding, sampled, tfidf
from shoestring.data.store import TokenStore
from shoestring.method import Count, method

OVERSAMPLING, POWER_ITERATIONS = 10, 4


@method(
    "data",
    kind="document embedding",
    name="tfidf_svd",
    paper="Scaling Expert Language Models with Unsupervised Domain Discovery, arXiv:2303.14177; randomised SVD: "
    "Finding Structure with Randomness, arXiv:0909.4061",
    claim="clusters of tf-idf vectors are domains that expert language models are worth training on",
    cost="two readings of the tokens; memory for the counts of a sample and one vector a document",
)
def tfidf_svd(
    store: TokenStore,
    seed: int,
    *,
    dimensions: Count = 64,
    ngrams: Count = 2,
    bits: Bits = 16,
    sample: Count = 20000,
    minimum_documents: Count = 2,
) -> Embedding:
    """Tf-idf, then a truncated singular value decomposition X ~ U S V^T, then unit length: h = V^T (tf * idf) / |...|.

    Gururangan et al. (2023), "Scaling Expert Language Models with Unsupervised Domain Discovery", arXiv:2303.14177, after
    latent semantic analysis. X [n, buckets] has a unit-length tf-idf row for each of a sample of documents; V its leading
    right singular vectors, found by Halko, Martinsson and Tropp's randomised range finder (2011), arXiv:0909.4061, with
    power iterations, from a seeded start, each vector's sign such that its largest entry is positive.

    dimensions: of h, at most the rank of X. ngrams: longest run of tokens that is a feature. bits: of the
    hash. sample: documents the vectors are fitted on. minimum_documents: that have a feature, for it to count. The
    paper's code takes words, no English stop words, numbers as one word, idf + 1, and 100 dimensions; here are the tokens
    of the model themselves, whatever the language, and features of every document weigh 0.

    Raises: UsageError where the documents have no features by which to tell them apart.
    """
    buckets = 1 << bits
    rows, weights = tfidf(store, sampled(len(store.document_starts), sample, seed), ngrams, buckets, minimum_documents)
    wanted = min(dimensions, *rows.shape)
    start = np.random.default_rng(seed).standard_normal((buckets, min(wanted + OVERSAMPLING, *rows.shape)))
    basis = np.linalg.qr(rows @ start.astype(np.float32))[0]
    for _ in range(POWER_ITERATIONS):
        basis = np.linalg.qr(rows @ (rows.T @ basis))[0]
    coordinates = rows.T @ basis  # [buckets, .]: its right singular vectors are had from a small symmetric matrix
    squares, mixing = np.linalg.eigh((coordinates.T @ coordinates).astype(np.float64))
    order = np.argsort(-squares)[:wanted]
    order = order[squares[order] > 1e-10 * squares.max()]
    directions = ((coordinates @ mixing[:, order]) / np.sqrt(squares[order])).T
    largest = directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)]
    directions = directions * np.sign(largest)[:, None]
    return Embedding(np.ascontiguousarray(directions.T * weights[:, None], dtype=np.float32), ngrams)
