"""Tokens by chance, as a control."""

from torch import Tensor

from shoestring.decode.cache_policy import Seen
from shoestring.method import Seed, method


@method(
    "decode",
    kind="cache policy",
    name="random",
    claim="none: what any other policy has to beat",
    cost="none beside the passes",
)
class RandomPlaces:
    """Keep tokens by chance, of each layer and head others.

    score(t) = a hash of (seed, layer, head, t) in [0, 1): the same tokens whenever the text is read.

    seed: of the choice.
    """

    figures, window = 0, 0

    def __init__(self, *, seed: Seed = 0) -> None:
        self.seed = seed

    def score(self, seen: Seen) -> Tensor:
        """As `CachePolicy.score`."""
        heads = len(seen.positions)
        salt = ((self.seed % (1 << 31)) * 1_000_003 + seen.layer * heads) % (1 << 31)
        x = seen.positions * 2_654_435 + (seen.positions.new_tensor(range(heads)) + salt)[:, None] * 40_503
        for _ in range(3):  # products below 2^63 of numbers below 2^31
            x = x % ((1 << 31) - 1)
            x = (x ^ (x >> 15)) * 1_103_515_245 + 12_345
        return (x % ((1 << 31) - 1)).double().div((1 << 31) - 1)

    def watch(self, figures: Tensor, attention: Tensor, first: int) -> None:
        """Nothing."""
