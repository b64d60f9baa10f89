"""The mixture of sources whose kinds of text are those of the text that matters."""

from collections.abc import Sequence

import numpy as np

from shoestring.errors import UsageError
from shoestring.method import NonNegative, method

SUM = 1e4
"""How much weighs that the weights come to 1, beside the distance."""


@method(
    "data",
    kind="mixture search",
    name="domain2vec",
    paper="Domain2Vec: Vectorizing Datasets to Find the Optimal Data Mixture without Training, arXiv:2506.10952",
    claim="the same loss on Pile-CC with 51.5 % of the computation, and 2.83 % better downstream at an equal amount",
    cost="one reading of each source by a classifier; no training",
)
class Domain2Vec:
    """Weights w on the simplex that bring the mixture's domain vector nearest to the target's: min |V^T w - t|^2 + penalty |w|^2.

    V: [sources, kinds], t: [kinds]: domain vectors, as `curation.meta_domains.MetaDomains.vector` gives them. That training and
    validation text are best alike in kinds is the paper's Distribution Alignment Assumption. Its kinds of text are found by
    k-means over embeddings and told by a language model of 0.5B that is trained to; here they are told by distances from centres.

    penalty: on the squared weights, which spreads them where sources are alike.
    """

    def __init__(self, *, penalty: NonNegative = 0.0) -> None:
        self.penalty = penalty

    def __call__(self, vectors: Sequence[np.ndarray] | np.ndarray, target: np.ndarray) -> np.ndarray:
        """float64 [sources], 0 or more, 1 in all."""
        import scipy.optimize  # slow to load

        rows, goal = np.asarray(vectors, dtype=np.float64), np.asarray(target, dtype=np.float64)
        if rows.ndim != 2 or goal.shape != rows.shape[1:] or not len(rows):
            raise UsageError("domain2vec: a domain vector for each source, of the same kinds as the target's")
        count = len(rows)
        sides = [rows.T, np.sqrt(self.penalty) * np.eye(count), np.full((1, count), SUM)]
        found, _ = scipy.optimize.nnls(np.concatenate(sides), np.concatenate([goal, np.zeros(count), [SUM]]))
        return np.asarray(found / found.sum())
