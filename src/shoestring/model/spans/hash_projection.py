"""A hash projection: tokens are read by hashes of the text that ends at them, and no table of embeddings."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.method import method
from shoestring.model.span import Inner, Span, Where
from shoestring.model.token_history import NOTHING, TokenHistory

LARGEST = (1 << 31) - 1
"""Hash values are below it."""
FIRST, SECOND = -7046029254386353131, -4417276706812531889
"""Odd factors that spread the bits of a number over 64, for the two hashes that all others are made of."""


@method(
    "model",
    kind="span",
    name="hash_projection",
    paper="pNLP-Mixer: an Efficient all-MLP Architecture for Language, arXiv:2202.04350",
    claim="without an embedding table, a quantised model of one megabyte reaches 99.4 % and 97.8 % of mBERT on two sets of "
    "semantic parsing, with 170 times fewer parameters",
    cost="a matrix of width x (window features); `unit` hashes and `window` counts a token, and that product",
)
class HashProjection(Span):
    """The layers within read counts of hashes of the latest trigrams, through one matrix, in place of the tokens' embeddings.

    Francesco Fusco et al., 2022, arXiv:2202.04350. It is for a span that begins at layer 0 of a model with `tied = true`.

        g_t = (x_{t-2}, x_{t-1}, x_t), of token ids;   hash_i(g) = (a(g) + i b(g)) mod (2^31 - 1),   i = 0 .. hashes - 1
        m_{t,i} = min over the `unit` latest trigrams g_s, t - unit < s <= t, of hash_i(g_s)           MinHash
        f_t[j] = number of i with m_{t,i} mod features = j, over sqrt(hashes)                            a counting Bloom filter
        stream_t = W [f_t; f_{t-1}; .. f_{t-window+1}]

    Texts that share most of their latest trigrams share most minima. Nothing later than t is read, and nothing of another document.
    Give `--data.tokenizer bytes`, so that a trigram is one of characters. The stream has no other input: the table that is left is
    the output head's, vocabulary x width, which every model of next tokens has; an untied model's second one is saved. State: the
    latest unit + window ids.

    Different from the paper: a token is hashed with those before it, in place of the trigrams of its own characters with the window
    on both sides, as a model of next tokens must not look ahead. The paper's text could not be read; the two hashes from which all
    are made, and the counts, are as in a public implementation of it.

    features: places of the filter. hashes: hash functions. unit: trigrams of a minimum. window: filters side by side.
    """

    replaces_embedding = True

    def __init__(
        self,
        width: int,
        *,
        features: Annotated[int, Interval(ge=2, le=65536)] = 512,
        hashes: Annotated[int, Interval(ge=1, le=1024)] = 64,
        unit: Annotated[int, Interval(ge=1, le=64)] = 4,
        window: Annotated[int, Interval(ge=1, le=64)] = 3,
    ) -> None:
        super().__init__()
        self.features, self.hashes, self.unit, self.window = features, hashes, unit, window
        self.before = unit + window  # ids that reach into a pass from before it
        self.bottleneck = nn.Linear(window * features, width, bias=False)

    def told(self, vocabulary: int) -> None:
        """As `Span.told`."""
        if (vocabulary + 2) ** 3 >= 2**63:
            raise ValueError(f"three tokens of a vocabulary of {vocabulary} do not fit in 64 bits")
        self.base = vocabulary + 2

    def counts(self, ids: Tensor, documents: Tensor) -> Tensor:
        """[B, n - before, window * features], of ids [B, n]: what the matrix reads at each place but the first `before`.

        ids: NOTHING where there is no token. documents: [B, n], of each id; one that differs is as NOTHING.
        """
        own = ids + 1  # that of NOTHING is 0
        grams, there = own, ids >= 0
        for back in (1, 2):
            earlier = torch.where(_behind(documents, back, -1) == documents, _behind(own, back, 0), 0)
            grams = grams + earlier * self.base**back
        kept = []
        first, second = (_spread(grams, factor) for factor in (FIRST, SECOND))
        number = torch.arange(self.hashes, device=ids.device)
        hashed = (first[..., None] + number * second[..., None]) % LARGEST  # [B, n, hashes]
        least = torch.where(there[..., None], hashed, LARGEST)
        minima = least
        for back in range(1, self.unit):
            same = _behind(documents, back, -1) == documents
            minima = torch.minimum(minima, torch.where(same[..., None], _behind(least, back, LARGEST), LARGEST))
        filled = torch.zeros(*ids.shape, self.features, dtype=self.bottleneck.weight.dtype, device=ids.device)
        share = torch.full_like(minima, self.hashes**-0.5, dtype=filled.dtype)
        filled = filled.scatter_add(2, minima % self.features, share) * there[..., None]
        for back in range(self.window):
            same = _behind(documents, back, -1) == documents
            kept.append(_behind(filled, back, 0) * same[..., None])
        return torch.cat(kept, -1)[:, self.before :]

    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        values = where.values
        assert values is not None
        held = [cache for cache in caches if cache is not None]
        nothing = torch.full((len(values), self.before), NOTHING, device=values.device)
        before = nothing if not held or held[0].last is None else held[0].last
        ids = torch.cat([before, values], 1)
        documents = torch.zeros_like(ids)
        if where.documents is not None:
            documents = torch.cat([torch.full_like(before, -1), where.documents], 1)
        stream = self.bottleneck(self.counts(ids, documents)).to(x.dtype)
        for cache in held:
            cache.read(ids, self.before)
        return inner(stream, where, [None if cache is None else cache.inner for cache in caches])

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        back = shape.backward
        own = cost.linear(self.bottleneck, shape.tokens, back, False)
        return own + inner(shape, back and cost.trains(self.bottleneck))

    def new_cache(self, make: Callable[..., Any]) -> Any:
        made = make()
        return None if made is None else TokenHistory(made)


def _behind(x: Tensor, count: int, fill: float) -> Tensor:
    """[B, n, ...]: at each place what stands `count` places before it, `fill` where nothing does."""
    if not count:
        return x
    start = torch.full_like(x[:, :count], fill)
    return torch.cat([start, x[:, :-count]], 1)


def _spread(numbers: Tensor, factor: int) -> Tensor:
    """A hash of each number, from 0 to 2^31 - 1."""
    mixed = (numbers + 1) * factor  # wraps around
    mixed = (mixed ^ ((mixed >> 29) & ((1 << 35) - 1))) * factor
    return (mixed >> 32) & LARGEST
