"""Clusters by lot: the control for every claim about clusters."""

import numpy as np

from shoestring.data.clusters.assignment import balanced
from shoestring.data.clusters.balanced_kmeans import Labelled, means
from shoestring.method import method


@method(
    "data",
    kind="clusters",
    name="random",
    paper="Branch-Train-Merge, arXiv:2208.03306",
    claim="ensembles of experts trained on random splits do not perform well: specialisation to domains is what "
    "matters",
    cost="none",
)
def random_clusters(vectors: np.ndarray, tokens: np.ndarray, clusters: int, seed: int) -> Labelled:
    """Documents to clusters at random, the clusters' tokens near equal; the centres are the means all the same.

    The random-split ablation of Li et al. (2022), "Branch-Train-Merge", arXiv:2208.03306, and of the later work.
    """
    costs = np.random.default_rng(seed).random((len(vectors), clusters))
    labels = balanced(costs, tokens)
    return means(vectors, labels, np.zeros((clusters, vectors.shape[1]), dtype=np.float32)), labels
