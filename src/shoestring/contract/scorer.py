"""How likely a model holds texts: what choosing data by a model asks of it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from shoestring.budget.charge import NOTHING, Charge


class Scored(NamedTuple):
    """What a model says of some texts.

    nats: float64 [n], the negative log-likelihood of each whole text.
    tokens: int64 [n], how many tokens it was predicted in, 1 or more.
    spent: what that took.
    """

    nats: np.ndarray
    tokens: np.ndarray
    spent: Charge = NOTHING


class Scorer(Protocol):
    """A model that scores texts."""

    @property
    def digest(self) -> str:
        """Equal digests are equal weights and tokenizers, and so equal scores."""
        ...

    def score(self, texts: Sequence[str]) -> Scored:
        """The likelihood of each text, by itself; none is empty."""
        ...
