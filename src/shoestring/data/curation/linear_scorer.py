"""A linear scorer of text on hashed runs of words: what a dearer judge says of a sample, said of a whole corpus for little."""

import hashlib
from typing import Any

import numpy as np

from shoestring.errors import UsageError

BUCKETS = 1 << 18
"""Hashed features."""


def sklearn(what: str) -> Any:
    """A module of scikit-learn. Raises: UsageError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(f"sklearn.{what}")
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise UsageError("this needs scikit-learn: pip install 'shoestring[curation]'") from None


def features(texts: list[str]) -> Any:
    """Sparse float64 [n, BUCKETS]: words and pairs of words in lower case, hashed, each row of unit length."""
    made = sklearn("feature_extraction.text").HashingVectorizer(
        n_features=BUCKETS, ngram_range=(1, 2), alternate_sign=True, norm="l2"
    )
    return made.transform(texts)


class LinearScorer:
    """score = features . w + b. `fit` finds w and b; `digest` tells one from another."""

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        self.weights, self.bias = weights, bias

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.weights.tobytes() + np.float64(self.bias).tobytes()).hexdigest()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """float64 [n]."""
        return np.asarray(features(texts) @ self.weights + self.bias)

    @classmethod
    def of_grades(cls, texts: list[str], grades: np.ndarray, penalty: float) -> "LinearScorer":
        """Least squares on grades [n], with a penalty on the square of w."""
        made = sklearn("linear_model").Ridge(alpha=penalty, solver="lsqr", tol=1e-6)
        made.fit(features(texts), grades)
        return cls(np.asarray(made.coef_, np.float64), float(made.intercept_))

    @classmethod
    def of_classes(cls, good: list[str], other: list[str], penalty: float) -> "LinearScorer":
        """Logistic regression of good texts against others, both sides weighing the same: the score is the log-odds."""
        made = sklearn("linear_model").LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=200)
        made.fit(features([*good, *other]), np.repeat([1, 0], [len(good), len(other)]))
        return cls(np.asarray(made.coef_[0], np.float64), float(made.intercept_[0]))
