"""SCONE: frequent n-grams have embeddings of their own, which a small network makes while training and a table holds afterwards."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.method import Count, method
from shoestring.model.span import Inner, Span, Where
from shoestring.model.token_history import NOTHING, TokenHistory


@method(
    "model",
    kind="span",
    name="scone",
    paper="Scaling Embedding Layers in Language Models, arXiv:2502.01637",
    claim="outperforms a baseline of 1.9B parameters with half the FLOPs at inference, as n-grams and the model that "
    "embeds them grow",
    cost="a small network at every n-gram of the list, once a pass; nothing from a table",
)
class Scone(Span):
    """At a place where a listed n-gram ends, the longest such one's embedding takes the place of the token's.

    Da Yu et al., 2025, arXiv:2502.01637. It is for a span that begins at layer 0; `--edits scone` lists the frequent n-grams of the
    training text.

        e_g = W_2 gelu(W_1 [u_{g_1} .. u_{g_n}]),   x_t = e_g for the longest g that ends at t, else the token's embedding

    u: embeddings of their own, `inner` wide, with a learnt vector where g is shorter than the longest. x: [B, T, width].

    All n-grams are embedded in each pass, so that the cost does not depend on the text. `tabulate` computes them once for use; the
    table is no weight, and is not saved.

    Different from the paper: a network of two layers in place of a transformer of n-grams, and a table in memory.

    ngrams: the list, each as its token ids: '12 7 300'. inner: width of their tokens' embeddings. hidden: features between W_1 and
    W_2.
    """

    both_ways = True

    def __init__(self, width: int, *, ngrams: tuple[str, ...] = (), inner: Count = 32, hidden: Count = 128) -> None:
        super().__init__()
        self.lists = [tuple(int(token) for token in text.split()) for text in ngrams]
        if not self.lists or min(map(len, self.lists)) < 2 or len(set(self.lists)) < len(self.lists):
            raise ValueError(
                "scone needs n-grams of two tokens or more, each once: give --edits scone, which lists them"
            )
        self.longest, self.width, self.inner, self.hidden = max(map(len, self.lists)), width, inner, hidden
        self._table: Tensor | None = None

    def told(self, vocabulary: int) -> None:
        """As `Span.told`: the weights are made."""
        most = max(max(one) for one in self.lists)
        if most >= vocabulary or (vocabulary + 1) ** self.longest >= 2**63:
            raise ValueError(
                f"n-grams of {self.longest} tokens up to id {most} do not fit a vocabulary of {vocabulary}"
            )
        self.base = vocabulary + 1
        self.tokens = nn.Embedding(self.base, self.inner)  # the last is for what a shorter n-gram has not
        self.first = nn.Linear(self.longest * self.inner, self.hidden, bias=False)
        self.second = nn.Linear(self.hidden, self.width, bias=False)
        padded = [(vocabulary,) * (self.longest - len(one)) + one for one in self.lists]
        self.members: Tensor
        self.register_buffer("members", torch.tensor(padded), persistent=False)
        for size in range(2, self.longest + 1):
            codes = sorted((self._code(one), number) for number, one in enumerate(self.lists) if len(one) == size)
            self.register_buffer(f"codes_{size}", torch.tensor([code for code, _ in codes], dtype=torch.int64), False)
            self.register_buffer(f"numbers_{size}", torch.tensor([n for _, n in codes], dtype=torch.int64), False)

    def _code(self, tokens: Sequence[Any]) -> Any:
        """One number for so many tokens: ids, or tensors of them."""
        found: Any = 0
        for token in tokens:
            found = found * self.base + token + 1
        return found

    def embeddings(self) -> Tensor:
        """[N, width]: of all n-grams."""
        made: Tensor = self.second(F.gelu(self.first(self.tokens(self.members).flatten(1))))
        return made

    @torch.no_grad()
    def tabulate(self) -> int:
        """Compute all embeddings now, for use: passes in evaluation mode look them up, until training goes on or the model is
        moved. Returns the operations. Other weights need another table."""
        self._table = self.embeddings()
        return self._own_flops(False)

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._table = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._table = None
        super()._apply(fn, recurse)
        return self

    def found(self, values: Tensor, before: Tensor, documents: Tensor | None) -> Tensor:
        """[B, T]: the number of the longest n-gram that ends at each place; -1: none.

        before: [B, longest - 1], the tokens before each row.
        """
        whole, back = torch.cat([before, values], 1), self.longest - 1
        best = torch.full_like(values, NOTHING)
        for size in range(2, self.longest + 1):
            codes, numbers = getattr(self, f"codes_{size}"), getattr(self, f"numbers_{size}")
            if not len(codes):
                continue
            windows = whole.unfold(1, size, 1)[:, back - size + 1 :]
            code = self._code(windows.unbind(-1))
            places = torch.searchsorted(codes, code.contiguous()).clamp_max(len(codes) - 1)
            match = (codes[places] == code) & (windows >= 0).all(-1)
            if documents is not None:
                start = torch.full_like(documents[:, : size - 1], NOTHING)
                match &= torch.cat([start, documents[:, : 1 - size]], 1) == documents
            best = torch.where(match, numbers[places], best)
        return best

    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        values, back = where.values, self.longest - 1
        assert values is not None
        held = [cache for cache in caches if cache is not None]
        nothing = torch.full((len(values), back), NOTHING, device=values.device)
        before = nothing if not held or held[0].last is None else held[0].last
        best = self.found(values, before, where.documents)
        for cache in held:
            cache.read(torch.cat([before, values], 1), back)
        table = self.embeddings() if self._table is None or self.training else self._table
        x = torch.where((best >= 0)[..., None], table[best.clamp_min(0)].to(x.dtype), x)
        return inner(x, where, [None if cache is None else cache.inner for cache in caches])

    def _own_flops(self, backward: bool) -> int:
        first = cost.linear(self.first, len(self.lists), backward, cost.trains(self.tokens))
        inside = cost.trains(self.tokens) or cost.trains(self.first)
        return first + cost.linear(self.second, len(self.lists), backward, inside)

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        table = self._table is not None and not self.training and not shape.backward
        return (0 if table else self._own_flops(shape.backward)) + inner(
            shape, inputs or (shape.backward and cost.trains(self))
        )

    def new_cache(self, make: Callable[[], Any]) -> Any:
        made = make()
        return None if made is None else TokenHistory(made)
