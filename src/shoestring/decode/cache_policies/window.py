"""The first tokens of a text and its latest."""

import torch
from torch import Tensor

from shoestring.decode.cache_policy import Seen
from shoestring.method import Whole, method


@method(
    "decode",
    kind="cache policy",
    name="window",
    paper="Efficient Streaming Language Models with Attention Sinks, arXiv:2309.17453",
    claim="with the keys and values of a few first tokens beside a window, models stay stable over texts of millions of tokens",
    cost="none beside the passes",
)
class Window:
    """Keep the first tokens of the text, which all others look at (the sinks), and the latest.

    score(t) = infinity for t < sinks, else t, with t the position of a token in the text.

    sinks: how many of the first tokens stay.

    The source gives tokens positions within the cache; here they keep those of the text, so a text is no longer than the model's
    context.
    """

    figures, window = 0, 0

    def __init__(self, *, sinks: Whole = 4) -> None:
        self.sinks = sinks

    def score(self, seen: Seen) -> Tensor:
        """As `CachePolicy.score`."""
        return seen.positions.float().masked_fill(seen.positions < self.sinks, torch.inf)

    def watch(self, figures: Tensor, attention: Tensor, first: int) -> None:
        """Nothing: positions are enough."""
