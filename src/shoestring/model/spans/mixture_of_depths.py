"""Mixture of depths: a few tokens of each sequence go through the layers within, the others pass by."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cache import PackedPass, Pass
from shoestring.contract.cost import Shape
from shoestring.contract.model import LOSS, Notes
from shoestring.errors import UsageError
from shoestring.method import NonNegative, method
from shoestring.model.routing import Gate
from shoestring.model.span import Inner, Span, Where


class ChosenTokens:
    """The state of a layer that some tokens go through: `inner` counts those alone.

    lengths: tokens of each row that went through.
    """

    rewindable = False

    def __init__(self, inner: Any, lengths: Sequence[int] | None) -> None:
        self.inner, self.lengths = inner, None if lengths is None else list(lengths)
        self.coming: Pass | None = None

    @property
    def nbytes(self) -> int:
        return int(self.inner.nbytes)

    def begin(self, coming: Pass) -> None:
        if isinstance(coming, PackedPass):
            raise UsageError(
                "layers that some tokens go through cannot read rows packed in one: give one sequence a row"
            )
        if coming.mask is not None:
            raise UsageError("layers that some tokens go through take no mask")
        self.coming = coming
        if self.lengths is None:
            self.lengths = [0] * len(coming.new)

    def go(self, new: list[int], device: torch.device) -> None:
        """So many tokens of each row go through in this pass."""
        assert self.lengths is not None
        self.inner.begin(Pass(self.lengths, new, max(new), None, device))
        self.lengths = [held + more for held, more in zip(self.lengths, new, strict=True)]

    def take(self, rows: Tensor) -> Self:
        lengths = None if self.lengths is None else [self.lengths[row] for row in rows.tolist()]
        return type(self)(self.inner.take(rows), lengths)

    def crop(self, lengths: Sequence[int]) -> None:
        raise UsageError(
            "which tokens went through a layer is not kept, so that none can be forgotten: restore a snapshot"
        )

    def snapshot(self) -> Any:
        return None if self.lengths is None else list(self.lengths), self.inner.snapshot()

    def restore(self, snapshot: Any) -> None:
        lengths, inner = snapshot
        self.lengths = None if lengths is None else list(lengths)
        self.inner.restore(inner)


@method(
    "model",
    kind="span",
    name="mixture_of_depths",
    paper="Mixture-of-Depths: Dynamically allocating compute in transformer-based language models, arXiv:2404.02258",
    claim="matches the baseline's loss for equal FLOPs and training time with a fraction of the FLOPs a forward pass, and up to "
    "50 % faster steps when sampling",
    cost="that of the layers within for a share `capacity` of the tokens, and one product of width a token",
)
class MixtureOfDepths(Span):
    """The tokens that a router scores highest go through the layers within; the others keep their stream.

    David Raposo et al., 2024, arXiv:2404.02258.

    r = W x [B, T]. While training, the k = ceil(capacity T) tokens of each row with the largest r are chosen; else, as later tokens
    are not there yet, those with r > 0, which a term of the loss teaches: the cross-entropy of sigmoid(r) with 'was chosen'.
    y_t = x_t + sigmoid(r_t) (layers(x)_t - x_t) for the chosen, which see each other alone, and y_t = x_t for the others.
    x: [B, T, width].

    Cost: without a backward pass it depends on the text; the layers within for all tokens are what is stated then.
    Different from the paper: sigmoid(r) multiplies what the layers add, and not r; a span may hold several layers.

    capacity: share of the tokens that go through while training. loss: coefficient of the term of the loss.
    """

    compiles = False
    looks_ahead = True

    def __init__(
        self,
        width: int,
        *,
        capacity: Annotated[float, Interval(gt=0, le=1)] = 0.125,
        loss: NonNegative = 0.01,
    ) -> None:
        super().__init__()
        self.capacity, self.loss = capacity, loss
        self.router = Gate(width, 1)

    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        scores = self.router(x)[..., 0]
        notes: Notes = {}
        if self.training:
            places = scores.topk(self.count(x.shape[1]), 1).indices.sort(1).values
            chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, places, True)
            if self.loss:
                notes[f"{LOSS}choice"] = self.loss * F.binary_cross_entropy_with_logits(scores, chosen.to(scores.dtype))
            return self._through(inner, x, where, scores, places, None, caches, notes)
        chosen = scores > 0
        held = next((cache for cache in caches if cache is not None), None)
        if held is not None and min(held.coming.new) < held.coming.length:
            new = torch.tensor(held.coming.new, device=x.device)
            chosen &= torch.arange(x.shape[1], device=x.device) < new[:, None]
        counts = chosen.sum(1)
        most = int(counts.max())
        if not most:
            return x, notes
        # chosen tokens first, in order; what fills a row up comes last, and is put nowhere
        places = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        for cache in caches:
            if cache is not None:
                cache.go(counts.tolist(), x.device)
        return self._through(inner, x, where, scores, places, counts, caches, notes)

    def count(self, length: int) -> int:
        """Tokens of a row that go through while training."""
        return max(1, math.ceil(self.capacity * length))

    def _through(
        self,
        inner: Inner,
        x: Tensor,
        where: Where,
        scores: Tensor,
        places: Tensor,
        counts: Tensor | None,
        caches: Sequence[Any],
        notes: Notes,
    ) -> tuple[Tensor, Notes]:
        """places: [B, k], of the tokens that go through. counts: how many of these are chosen, in each row; None: all."""
        index = places[..., None].expand(-1, -1, x.shape[2])
        before = x.gather(1, index)
        own = [None if cache is None else cache.inner for cache in caches]
        after, told = inner(before, self._where(where, places, x.shape[1]), own)
        notes.update(told)
        added = (after - before) * scores.gather(1, places).sigmoid()[..., None].to(after.dtype)
        if counts is not None:
            real = torch.arange(places.shape[1], device=x.device) < counts[:, None]
            added = added * real[..., None]
        return x.scatter_add(1, index, added.to(x.dtype)), notes

    @staticmethod
    def _where(where: Where, places: Tensor, length: int) -> Where:
        """What the chosen tokens are told."""
        rows = torch.arange(len(places), device=places.device)[:, None]

        def taken(table: Tensor) -> Tensor:
            return table[places] if table.ndim == 3 else table[rows, places]

        tables = tuple((taken(cos), taken(sin)) for cos, sin in where.tables)
        mask = where.mask
        if mask is not None:
            whole = mask.expand(len(places), 1, length, length)
            mask = whole[rows[..., None, None], 0, places[:, None, :, None], places[:, None, None, :]]
        return Where(tables, mask, None if where.documents is None else where.documents.gather(1, places))

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        if not shape.backward:
            return cost.linear(self.router, shape.tokens) + inner(shape, inputs)
        within = inner(shape._replace(new=self.count(shape.new)), inputs)
        return cost.linear(self.router, shape.tokens, True, inputs) + within

    def new_cache(self, make: Callable[..., Any]) -> Any:
        made = make()
        return None if made is None else ChosenTokens(made, None)
