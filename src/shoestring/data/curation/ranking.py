"""Documents in the order of a score, and the best of them."""

import numpy as np


def beyond(scores: np.ndarray, sizes: np.ndarray, keep: float) -> np.ndarray:
    """bool [n]: True for documents that are not among the best, which hold the share `keep` of all bytes, or just above.

    scores: [n], higher is better; of equals the earlier goes first. sizes: [n] bytes of each.
    """
    order = np.argsort(-scores, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    dropped = np.ones(len(scores), dtype=bool)
    dropped[order[before < keep * sizes.sum()]] = False
    return dropped
