"""Mixture of depths: a few tokens of each sequence go through the layers within, the others pass by."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.model import LOSS, Notes
from shoestring.method import NonNegative, method
from shoestring.model.chosen_tokens import ChosenTokens, where_of
from shoestring.model.routing import Gate
from shoestring.model.span import Inner, Span, Where


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
        after, told = inner(before, where_of(where, places, x.shape[1], counts), own)
        notes.update(told)
        added = (after - before) * scores.gather(1, places).sigmoid()[..., None].to(after.dtype)
        if counts is not None:
            real = torch.arange(places.shape[1], device=x.device) < counts[:, None]
            added = added * real[..., None]
        return x.scatter_add(1, index, added.to(x.dtype)), notes

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        if not shape.backward:
            return cost.linear(self.router, shape.tokens) + inner(shape, inputs)
        within = inner(shape._replace(new=self.count(shape.new)), inputs)
        return cost.linear(self.router, shape.tokens, True, inputs) + within

    def new_cache(self, make: Callable[..., Any]) -> Any:
        made = make()
        return None if made is None else ChosenTokens(made, None)
