"""The same shares from the first sequence to the last."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from shoestring.data.mixture import Domain, Shares, Unmoved, shares_of
from shoestring.method import method


@method(
    "data",
    kind="mixture",
    name="fixed",
    claim="each domain has a constant share of the sequences",
    cost="nothing",
)
class Fixed(Unmoved):
    """Constant shares.

    weights: by source; none given: in proportion to the tokens that there are, so that all are read equally often.
    """

    constant: ClassVar[bool] = True

    def __init__(self, domains: Sequence[Domain], *, weights: Shares | None = None) -> None:
        self._shares = shares_of(domains, weights)

    def weights(self, progress: float) -> np.ndarray:
        return self._shares
