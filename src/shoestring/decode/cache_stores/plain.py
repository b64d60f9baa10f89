"""Keys and values as the model makes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.method import method


@method(
    "decode",
    kind="cache store",
    name="plain",
    claim="none: what every model has",
    cost="a number of the model's type for each number",
)
class PlainStore:
    """Hold keys and values as they are, in the model's type. What is read is what was written."""

    exact = True

    def empty(self, places: int, heads: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.empty`."""
        # zeros and not whatever was there: what is masked is still multiplied, and may not be NaN
        return (torch.zeros(places, heads, width, dtype=like.dtype, device=like.device),)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.encode`."""
        return (x,)

    def decode(self, codes: Sequence[Tensor], like: Tensor) -> Tensor:
        """As `CacheStore.decode`."""
        return codes[0]

    def readable(self, width: int) -> bool:
        """As `CacheStore.readable`."""
        return False

    def elsewhere(self, codes: Sequence[Tensor]) -> int:
        """Nothing."""
        return 0
