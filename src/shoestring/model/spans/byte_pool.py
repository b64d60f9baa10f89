"""Pooled bytes: the layers within read patches of bytes, each pooled to one vector; the layers around them read single bytes."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model.chosen_tokens import ChosenTokens, where_of
from shoestring.model.span import CacheSizes, Inner, Span, Where


class PatchTokens(ChosenTokens):
    """The state of the first layer within: its own, and what the span keeps.

    recent: [B, patch - 1, width], the latest bytes' vectors. latest: [B, width], what the last whole patch adds.
    """

    def __init__(self, inner: Any, lengths: Sequence[int] | None, recent: Tensor, latest: Tensor) -> None:
        super().__init__(inner, lengths)
        self.recent, self.latest = recent, latest

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.recent.nbytes + self.latest.nbytes

    def take(self, rows: Tensor) -> Self:
        lengths = None if self.lengths is None else [self.lengths[row] for row in rows.tolist()]
        return type(self)(self.inner.take(rows), lengths, self.recent[rows], self.latest[rows])

    def snapshot(self) -> Any:
        return self.recent.clone(), self.latest.clone(), super().snapshot()

    def restore(self, snapshot: Any) -> None:
        self.recent, self.latest = snapshot[0].clone(), snapshot[1].clone()
        super().restore(snapshot[2])


@method(
    "model",
    kind="span",
    name="byte_pool",
    paper="Super Tiny Language Models, arXiv:2405.14159",
    claim="reading bytes that are pooled, tied weights and efficient training take 90 to 95 % of the parameters of traditional "
    "models, with competitive performance",
    cost="that of the layers within for one place in `patch`, and two products of width x width there",
)
class BytePool(Span):
    """Every `patch` bytes are pooled to one vector; the layers within go through those, and each later byte is told the result.

    Dylan Hillier et al., 2024, arXiv:2405.14159.

        z_p = V sum_j a_j x_{pP + j},   a = softmax_j(q . x_{pP + j} / sqrt(width) + b_j),   P = patch
        h = layers(z), each patch seeing itself and those before it
        y_t = x_t + U h_p + e_{(t + 1) mod P},   p: the last patch that ends at t or before; none yet: y_t = x_t

    So no byte is told of a patch that it comes before or stands inside of: the bytes of a patch are predicted from the patches
    before it, and from each other by the layers around. U and e begin at zero. Patches begin anew with each document.
    x: [B, T, width].

    State: patch vectors of width a row, and of the layers within what patches take: a share 1 / patch of what bytes would.

    Different from the paper, whose abstract names pooling alone, and whose published code takes the mean over the bytes of a token
    of another tokenizer: patches have one size, which needs no tokenizer, and the mean's weights are learnt.

    patch: P, bytes of a patch.
    """

    compiles = False

    def __init__(self, width: int, *, patch: Annotated[int, Interval(ge=2, le=256)] = 4) -> None:
        super().__init__()
        self.width, self.patch = width, patch
        self.query = nn.Linear(width, 1, bias=False)
        self.place_scores = nn.Parameter(torch.zeros(patch))
        self.pool = nn.Linear(width, width, bias=False)
        self.back = nn.Linear(width, width, bias=False)
        self.offsets = nn.Parameter(torch.zeros(patch, width))

    @torch.no_grad()
    def draw(self) -> None:
        """Every place of a patch is as good as another."""
        self.place_scores.zero_()

    @torch.no_grad()
    def silence(self) -> None:
        """What it adds to the stream begins at zero."""
        self.back.weight.zero_()
        self.offsets.zero_()

    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        rows, length, width = x.shape
        state = next((cache for cache in caches if cache is not None), None)
        before, latest = x.new_zeros(rows, self.patch - 1, width), x.new_zeros(rows, width)
        place = _places(where.documents, x)
        real = torch.ones(rows, length, dtype=torch.bool, device=x.device)
        if state is not None:
            before, latest = state.recent.to(x.dtype), state.latest.to(x.dtype)
            place = place + torch.tensor(state.coming.held, device=x.device)[:, None]
            new = torch.tensor(state.coming.new, device=x.device)
            real = torch.arange(length, device=x.device) < new[:, None]
        ends = real & ((place + 1) % self.patch == 0)
        told: Notes = {}
        whole, added = torch.cat((before, x), 1), latest[:, None]
        most = int(ends.sum(1).max())
        if most:
            found, told = self._through(inner, whole, where, ends, most, caches)
            added = torch.cat((added, found), 1)
        reached = ends.cumsum(1)
        y = (
            added.gather(1, reached[..., None].expand(-1, -1, width))
            + self.offsets.to(x.dtype)[(place + 1) % self.patch]
        )
        if state is not None:
            state.latest = added.gather(1, ends.sum(1)[:, None, None].expand(-1, -1, width))[:, 0].to(
                state.latest.dtype
            )
            at = new[:, None] + torch.arange(self.patch - 1, device=x.device)
            state.recent = whole.gather(1, at[..., None].expand(-1, -1, width)).to(state.recent.dtype)
        return torch.where((place >= self.patch - 1)[..., None], x + y.to(x.dtype), x), told

    def _through(
        self, inner: Inner, whole: Tensor, where: Where, ends: Tensor, most: int, caches: Sequence[Any]
    ) -> tuple[Tensor, Notes]:
        """([B, most, width], notes): what each patch adds. whole: the bytes' vectors, from patch - 1 before the pass on.

        ends: [B, T], the bytes that end a patch. most: of the row that has most of them.
        """
        counts = ends.sum(1)
        # ends first, in order; what fills a row up comes last, and is read by nobody
        places = ends.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        each = (places[..., None] + torch.arange(self.patch, device=places.device)).flatten(1)
        parts = whole.gather(1, each[..., None].expand(-1, -1, whole.shape[2])).unflatten(1, (most, self.patch))
        scores = self.query(parts)[..., 0] / math.sqrt(self.width) + self.place_scores.to(parts.dtype)
        pooled = self.pool((parts * scores.softmax(-1)[..., None]).sum(2))
        for cache in caches:
            if cache is not None:
                cache.go(counts.tolist(), whole.device)
        own = [None if cache is None else cache.inner for cache in caches]
        # patches are tokens of their own, so that layers within may leave things for each other
        inside = where_of(where, places, ends.shape[1], counts)._replace(trail={})
        made, told = inner(pooled, inside, own)
        return self.back(made), told

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        back, count = shape.backward, (shape.past + shape.new) // self.patch - shape.past // self.patch
        if not count:
            return 0
        patches = shape.rows * count
        inside = inputs or (back and (cost.trains(self.query) or self.place_scores.requires_grad))
        total = cost.linear(self.query, patches * self.patch, back, inputs)
        total += cost.linear(self.pool, patches, back, inside)
        inside = inside or (back and cost.trains(self.pool))
        within = inner(shape._replace(new=count, past=shape.past // self.patch), inside)
        return total + within + cost.linear(self.back, patches, back)

    def new_caches(self, makes: Sequence[Callable[..., Any]], sizes: CacheSizes) -> list[Any]:
        """As `Span.new_caches`: of as many patches as there is room for. Raises: UsageError for a layer that keeps nothing."""
        each = [make(room=max(1, sizes.room // self.patch)) for make in makes]
        if any(one is None for one in each):
            raise UsageError("the layers within byte_pool must keep something of each patch, as attention does")
        kept = torch.zeros(sizes.rows, self.patch, self.width, dtype=sizes.dtype, device=sizes.device)
        recent, latest = kept[:, 1:].clone(), kept[:, 0].clone()
        return [PatchTokens(each[0], None, recent, latest), *(ChosenTokens(one, None) for one in each[1:])]

    def all_held(self, each: Sequence[tuple[int, int]], itemsize: int) -> list[tuple[int, int]]:
        """As `Span.all_held`: the span's own vectors lie in the first layer's state."""
        found = [(-(-token // self.patch), state) for token, state in each]
        return [(found[0][0], found[0][1] + self.patch * self.width * itemsize), *found[1:]]


def _places(documents: Tensor | None, x: Tensor) -> Tensor:
    """[B, T]: how many bytes of its document stand before each."""
    count = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    if documents is None:
        return count
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return count - torch.where(begins, count, 0).cummax(1).values
