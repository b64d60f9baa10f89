"""What a document is made of: its tokens and the short runs of tokens in it, hashed into a fixed number of buckets."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from shoestring.data.store import TokenStore
from shoestring.data.subset import document_bounds

if TYPE_CHECKING:
    import scipy.sparse

BLOCK = 1 << 20
"""Tokens looked at together."""


def hashed(tokens: np.ndarray, ngrams: int, buckets: int) -> np.ndarray:
    """int64 [..., T, ngrams]: the bucket of the run of 1, 2 .. `ngrams` tokens that ends at each place of `tokens` [..., T].

    A run that would begin before the first place is in bucket `buckets`, which is nobody's. buckets: a power of two. The
    hash is multiplicative: a run's token ids, each plus one, are the digits of a number in an odd base modulo 2^64; the
    high bits of that number times another odd constant are the bucket.
    """
    shift = np.uint64(64 - (buckets - 1).bit_length()) if buckets > 1 else np.uint64(63)
    values = tokens.astype(np.uint64) + np.uint64(1)
    found = np.full((*tokens.shape, ngrams), buckets, dtype=np.int64)
    running = np.zeros_like(values)
    length = tokens.shape[-1]
    for run in range(min(ngrams, length)):
        # the token `run` places back becomes the number's highest digit
        running = running[..., min(run, 1) :] + values[..., : length - run] * np.uint64(
            pow(0x9E3779B97F4A7C15, run, 1 << 64)
        )
        mixed = (running + np.uint64(run)) * np.uint64(0xD6E8FEB86659FD93)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0xD6E8FEB86659FD93)
        found[..., run:, run] = (mixed >> shift).astype(np.int64) % buckets
    return found


def blocks(store: TokenStore, documents: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of documents in stretches of about `BLOCK` tokens, each of one document or more."""
    bounds = document_bounds(store)
    lengths = bounds[documents + 1] - bounds[documents]
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // BLOCK)) + 1
    yield from np.split(documents, cuts)


def document_tokens(store: TokenStore, document: int) -> np.ndarray:
    """int64 [T]: the tokens of a document without its end token."""
    start = int(store.document_starts[document])
    stop = int(store.document_starts[document + 1]) if document + 1 < len(store.document_starts) else len(store)
    tokens = np.empty(max(stop - start - 1, 0), dtype=np.int64)
    store.read(start, start + len(tokens), tokens)
    return tokens


def counts(store: TokenStore, documents: np.ndarray, ngrams: int, buckets: int) -> "scipy.sparse.csr_matrix":
    """float32 [documents, buckets]: how often each bucket's runs occur in each document."""
    rows, columns = [], []
    for row, document in enumerate(documents.tolist()):
        features = hashed(document_tokens(store, document), ngrams, buckets).reshape(-1)
        features = features[features < buckets]
        rows.append(np.full(len(features), row))
        columns.append(features)
    places = (np.concatenate(rows), np.concatenate(columns)) if rows else (np.empty(0, int), np.empty(0, int))
    ones = np.ones(len(places[0]), dtype=np.float32)
    import scipy.sparse  # slow to load

    return scipy.sparse.csr_matrix((ones, places), shape=(len(documents), buckets))
