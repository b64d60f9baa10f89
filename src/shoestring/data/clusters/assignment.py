"""Documents handed to clusters so that each cluster gets its share, at least cost."""

import numpy as np

TEMPERATURES = (0.3, 0.1, 0.03, 0.01)
"""Of the softened assignment, one after the other, as shares of the mean difference between a document's two lowest costs."""

ROUNDS = 30
"""Corrections of the prices at each temperature."""


def prices(costs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [k]: what each cluster asks on top of `costs` [n, k], for the cheapest clusters to get near equal weight.

    The dual variables of optimal transport from documents of these `weights` [n] to clusters of equal capacity, by
    Sinkhorn's iteration at falling temperatures: Cuturi (2013), "Sinkhorn Distances", arXiv:1306.0895.
    """
    lowest = np.partition(costs, 1, axis=1)[:, :2]
    scale = max(float((lowest[:, 1] - lowest[:, 0]).mean()), 1e-9)
    asked, shares = np.zeros(costs.shape[1]), weights / weights.sum()
    for temperature in TEMPERATURES:
        for _ in range(ROUNDS):
            logits = -(costs + asked) / (temperature * scale)
            logits -= logits.max(axis=1, keepdims=True)
            soft = np.exp(logits)
            load = shares @ (soft / soft.sum(axis=1, keepdims=True))
            asked += temperature * scale * np.log(np.maximum(load * len(asked), 1e-12))
    return asked


def balanced(costs: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """int64 [n]: a cluster for each document, the clusters' weights near equal, the sum of `costs` [n, k] low.

    Documents choose in the order of what they would lose by not having their first choice, at the `prices`; a cluster
    that has its share takes no more. weights None: every document counts one, clusters differ by one document at most,
    and at last pairs of documents change places as long as that pays. Else: [n], above 0; a cluster exceeds its share by
    less than its last document's weight. Not the exact optimum; deterministic, the first of equals chosen.
    """
    documents, clusters = costs.shape
    if clusters == 1:
        return np.zeros(documents, dtype=np.int64)
    costs = costs.astype(np.float64)
    counted = np.ones(documents) if weights is None else weights.astype(np.float64)
    reduced = costs + prices(costs, counted)
    lowest = np.partition(reduced, 1, axis=1)
    order = np.argsort(lowest[:, 0] - lowest[:, 1], kind="stable")
    choices = np.argsort(reduced, axis=1, kind="stable")
    share = counted.sum() / clusters
    least, extra = divmod(documents, clusters)  # so many clusters of plain documents hold one more than the least
    load, labels = np.zeros(clusters), np.empty(documents, dtype=np.int64)
    for document in order.tolist():
        for cluster in choices[document].tolist():
            if weights is None:
                more = load[cluster] == least and extra > 0
                room = load[cluster] < least or more
                extra -= int(more)
            else:
                room = load[cluster] < share * (1 - 1e-12)
            if room:
                break
        else:
            cluster = int(load.argmin())  # rounding filled every cluster before the last document
        labels[document] = cluster
        load[cluster] += counted[document]
    return _swapped(costs, labels) if weights is None else labels


def _swapped(costs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The labels after every exchange of two documents between two clusters that lowers the sum of costs."""
    clusters, changed = costs.shape[1], True
    while changed:
        changed = False
        for one in range(clusters):
            for other in range(one + 1, clusters):
                here, there = np.flatnonzero(labels == one), np.flatnonzero(labels == other)
                leave = costs[here, other] - costs[here, one]  # what each would cost more on the other side
                come = costs[there, one] - costs[there, other]
                here, there = here[np.argsort(leave, kind="stable")], there[np.argsort(come, kind="stable")]
                pairs = min(len(here), len(there))
                gain = np.sort(leave)[:pairs] + np.sort(come)[:pairs] < -1e-12
                labels[here[:pairs][gain]], labels[there[:pairs][gain]] = other, one
                changed |= bool(gain.any())
    return labels
