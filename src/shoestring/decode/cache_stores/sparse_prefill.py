"""Long prompts whose tokens look at what the piece before looked at, head by head, and not at all of the rest."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.grouped_attention import grouped_attention
from shoestring.contract.model import LanguageModel
from shoestring.decode.text_cache import GrowingLayer, TextCache
from shoestring.method import Count, Fraction, method

Pattern = tuple[Tensor, Tensor]
"""Of a head: [v] positions that all tokens look at, [s] distances at which each looks. Both sorted, int64."""


class SparseLayer(GrowingLayer):
    """All tokens of a text, and of each head of queries what the tokens of the coming piece look at.

    start: of the piece that is read. patterns: of each head; None: they look at all.
    reading: whether the prompt is read still. queries: of the latest tokens.
    """

    def __init__(self, share: float, observed: int) -> None:
        super().__init__()
        self.share, self.observed = share, observed
        self.start, self.reading = 0, True
        self.patterns: list[Pattern] | None = None
        self.queries: Tensor | None = None
        self.scale, self.window = 1.0, 1 << 62
        self.scored = 0
        """Pairs of a query and a key that were scored, of all heads."""

    @property
    def nbytes(self) -> int:
        found = sum(part.nbytes for pattern in self.patterns or () for part in pattern)
        return super().nbytes + found + (0 if self.queries is None else self.queries.nbytes)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`."""
        before = self.held
        self.grow(keys, values)
        assert self.keys is not None
        assert self.values is not None
        self.scale = queries.shape[3] ** -0.5 if scale is None else scale
        self.window = self.window if window is None else window
        if self.reading:
            both = queries if self.queries is None else torch.cat((self.queries, queries), 2)
            self.queries = both[:, :, -self.observed :].clone()
        own = torch.arange(before, self.held, device=keys.device)
        if self.patterns is None:
            behind = own[:, None] - torch.arange(self.held, device=keys.device)
            self.scored += queries.shape[1] * behind.numel()
            mask = (behind >= 0) & (behind < self.window)
            return grouped_attention(queries, self.keys, self.values, mask=mask, scale=scale)
        found, share = [], queries.shape[1] // keys.shape[1]
        for head, pattern in enumerate(self.patterns):
            places, mask = self._seen(own, pattern)
            self.scored += mask.numel()
            k, v = (side[:, head // share, places][:, None] for side in (self.keys, self.values))
            found.append(F.scaled_dot_product_attention(queries[:, head : head + 1], k, v, attn_mask=mask, scale=scale))
        return torch.cat(found, 1)

    def _seen(self, own: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """([n] places that some of these tokens see, [T, n] which of them each sees)."""
        columns, distances = pattern
        slanted = own[:, None] - distances
        there = torch.zeros(self.held, dtype=torch.bool, device=own.device)
        there[columns] = True
        there[self.start :] = True
        by_all = there.clone()
        there[slanted[slanted >= 0]] = True
        places = there.nonzero()[:, 0]
        seen = by_all[places].repeat(len(own), 1)
        # each token's own distances are few beside the places, so that they are marked one by one
        token, which = (slanted >= 0).nonzero(as_tuple=True)
        seen[token, (there.cumsum(0) - 1)[slanted[token, which]]] = True
        behind = own[:, None] - places[-len(own) :]  # what was read before this pass is behind all of them
        seen[:, -len(own) :] &= behind >= 0
        if self.window < self.held:
            seen &= own[:, None] - places < self.window
        return places, seen

    def choose(self) -> None:
        """A piece is read: find what its latest tokens looked at, for the tokens of the next."""
        assert self.keys is not None
        assert self.queries is not None
        new, share = self.queries.shape[2], self.queries.shape[1] // self.keys.shape[1]
        own = torch.arange(self.held - new, self.held, device=self.keys.device)
        behind = own[:, None] - torch.arange(self.held, device=self.keys.device)
        hidden = (behind < 0) | (behind >= self.window)
        self.patterns = []
        for head in range(self.queries.shape[1]):
            scores = self.queries[0, head].float() @ self.keys[0, head // share].float().mT * self.scale
            attention = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            self.patterns.append(refined(attention, behind, self.share))
        self.start = self.held

    def finish(self) -> None:
        """The prompt is read: what is written looks at all."""
        self.reading, self.patterns, self.queries = False, None, None


def refined(attention: Tensor, behind: Tensor, share: float) -> Pattern:
    """The fewest positions and distances, as many of the one as of the other and a power of two, that keep a share of attention.

    attention: [n, S], of the latest n tokens. behind: [n, S], how far behind each a place lies.
    """
    size, distances = attention.shape[1], behind.clamp_min(0)
    columns = attention.sum(0).argsort(descending=True, stable=True)
    slants = torch.zeros(size, device=attention.device).index_add_(0, distances.flatten(), attention.flatten())
    slants = slants.argsort(descending=True, stable=True)
    # a pair is kept from the count on at which its position or its distance is among the first
    column, slant = columns.argsort(), slants.argsort()
    needed = torch.minimum(column, slant[distances]).flatten()
    kept = torch.zeros(size, dtype=torch.float64, device=attention.device)
    kept = kept.index_add_(0, needed, attention.double().flatten()).cumsum(0) / len(attention)
    count = 1
    while count < size and float(kept[count - 1]) < share:
        count *= 2
    return columns[:count].sort().values, slants[:count].sort().values


class SparseCache(TextCache):
    """Layers that read a prompt in pieces. piece: tokens of one."""

    def __init__(self, layers: list[SparseLayer], room: int, piece: int) -> None:
        super().__init__(layers, 1, room)
        self.piece = piece

    def allowed(self, prompt: int) -> int:
        return min(self.piece - self.length % self.piece, prompt - self.length) if self.length < prompt else 1 << 30

    def settle(self, prompt: int) -> None:
        layers: list[Any] = self.layers
        for layer in layers:
            if self.length == prompt:
                layer.finish()
            elif self.length < prompt and self.length % self.piece == 0:
                layer.choose()


@method(
    "decode",
    kind="cache store",
    name="sparse_prefill",
    paper="Qwen2.5-1M Technical Report, arXiv:2501.15383",
    claim="with the report's kernels, prompts of a million tokens are read 3 to 7 times as fast",
    cost="frees no memory; the latest tokens of each piece attend once more. It saves scores; a ledger counts as if all were made",
)
class SparsePrefill:
    """Read a prompt in pieces; in each, a head looks at the positions and distances that mattered at the end of the piece before.

    The pattern, "vertical and slash", is that of MInference (arXiv:2407.02490). Token t of a piece sees j where

        j is in its own piece,   or j is one of the head's positions,   or t - j is one of its distances

    At the end of a piece, A is the attention of its last `observed` tokens to all before. Positions are those of the largest
    sum_t A[t, j], distances those of the largest sum_t A[t, t - d]. Of each there are 1, 2, 4 ..., as few as keep the `share`:

        mean_t sum_(j seen) A[t, j] >= share

    which the report calls attention recall. The first piece sees all, and so does what is written.

    piece: tokens. observed: as above. share: of attention, from 0 to 1.

    The report looks at the end of the same piece, and searches its numbers before, on long texts; here a piece goes by the one
    before it, so that it does not matter in which passes a prompt is read. A share of 1 reads all. There is no kernel: keys are
    gathered for each head. With the edit `dual_chunk` it does not go: that has caches of its own.
    """

    def __init__(self, *, piece: Count = 1024, observed: Count = 64, share: Fraction = 0.95) -> None:
        self.piece, self.observed, self.share = piece, observed, share

    def cache(self, model: LanguageModel, room: int) -> SparseCache:
        """As `TextStore.cache`."""
        layers = [SparseLayer(self.share, self.observed) for _ in range(model.about.layers)]
        return SparseCache(layers, room, self.piece)
