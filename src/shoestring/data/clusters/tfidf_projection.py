"""Tf-idf vectors in a few random directions: no decomposition, distances kept within a stated error."""

import numpy as np

from shoestring.data.clusters.embedding import Bits, Embedding, sampled, tfidf
from shoestring.data.store import TokenStore
from shoestring.method import Count, method


@method(
    "data",
    kind="document embedding",
    name="tfidf_projection",
    paper="Database-friendly Random Projections (Achlioptas, PODS 2001)",
    claim="distances between n vectors are kept within a factor 1 +- e by O(log n / e^2) random signs",
    cost="one reading of a sample of the tokens for the document frequencies, and one for the vectors",
)
def tfidf_projection(
    store: TokenStore,
    seed: int,
    *,
    dimensions: Count = 256,
    ngrams: Count = 2,
    bits: Bits = 16,
    sample: Count = 20000,
    minimum_documents: Count = 2,
) -> Embedding:
    """h = R^T (tf * idf) / |...|, each entry of R [buckets, dimensions] +1 or -1 over sqrt(dimensions), by the seed.

    Achlioptas (2001), "Database-friendly Random Projections", after Johnson and Lindenstrauss. Cheaper than `tfidf_svd` and
    blind to the corpus but for its document frequencies: related words fall in unrelated directions, so it takes more
    dimensions. The options are those of `tfidf_svd`. Raises: UsageError as it does.

    dimensions: numbers of each vector.
    ngrams: words in the longest term.
    bits: of the hash of a term: there are 2^bits buckets.
    sample: documents that the frequencies are counted on.
    minimum_documents: fewer than these hold a term that is left out.
    """
    buckets = 1 << bits
    _, weights = tfidf(store, sampled(len(store.document_starts), sample, seed), ngrams, buckets, minimum_documents)
    signs = np.random.default_rng(seed).integers(0, 2, (buckets, dimensions), dtype=np.int8) * 2.0 - 1.0
    return Embedding((signs * weights[:, None] / np.sqrt(dimensions)).astype(np.float32), ngrams)
