"""Which tokens of a text stay in a cache that has less room than the text has tokens."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shoestring.errors import UsageError


class Seen(NamedTuple):
    """What a layer holds of one text, when some of it has to go. Each head of keys has places of its own.

    layer: its number. layers: how many there are.
    keys, values: [Hk, S, D], as attention reads them: keys are turned by their positions where the model does so.
    positions: [Hk, S] int64, which token of the text each is.
    read: tokens of the text that were read.
    figures: [Hk, S, f] float32, what `watch` noted.
    queries: [H, n, D], those of the latest tokens, the newest last; n is `window`, or fewer where fewer were read. None where
        the policy wants none.
    scale: of the scores of attention. reach: how many of the latest tokens a token sees in this layer; None: all.
    """

    layer: int
    layers: int
    keys: Tensor
    values: Tensor
    positions: Tensor
    read: int
    figures: Tensor
    queries: Tensor | None = None
    scale: float = 1.0
    reach: int | None = None


class CachePolicy(Protocol):
    """Says how much each place matters. Those that matter least are evicted.

    figures: numbers that it notes of each place and head; 0: none, and it is never asked to `watch`.
    window: queries of the latest tokens that it wants to see; 0: none.
    """

    figures: int
    window: int

    def score(self, seen: Seen) -> Tensor:
        """How much each place matters, [Hk, S]; of equal ones the later stays."""
        ...

    def watch(self, figures: Tensor, attention: Tensor, first: int) -> None:
        """Note what tokens that were just read look at.

        figures: [Hk, S, f], to be changed in place; zeros for the places of the new tokens, which are the last.
        attention: [Hk, G, n, S], of each new token and each of the G query heads that share the keys.
        first: how many tokens of the text were read before the new ones.
        """
        ...


def kept(policy: CachePolicy, seen: Seen, count: int) -> Tensor:
    """The places that stay, [Hk, count] int64, in the order of the text. Raises: UsageError for scores that are no numbers."""
    scores = policy.score(seen).float()
    if scores.isnan().any():
        raise UsageError(f"layer {seen.layer} has scores that are no numbers: its keys or values are none either")
    order = torch.sort(scores.flip(-1), dim=-1, descending=True, stable=True).indices[:, :count]
    found: Tensor = (scores.shape[-1] - 1 - order).sort(-1).values
    return found


def attention_of(
    queries: Tensor, keys: Tensor, scale: float, positions: Tensor, read: int, reach: int | None = None
) -> Tensor:
    """What the latest tokens look at: [Hk, G, n, S], rows that sum to one.

    queries: [H, n, D], of the last n of the `read` tokens. keys: [Hk, S, D]. positions: [Hk, S], which tokens of the text they are.
    reach: how many of the latest tokens a token sees; None: all.
    """
    heads, new, _ = queries.shape
    grouped = queries.float().reshape(len(keys), heads // len(keys), new, -1)
    scores = grouped @ keys.float()[:, None].mT * scale
    behind = torch.arange(read - new, read, device=keys.device)[:, None] - positions[:, None, None]
    hidden = behind < 0 if reach is None else (behind < 0) | (behind >= reach)
    found: Tensor = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return found
