"""A memory that goes from segment to segment in each layer, with all cells of a diagonal computed together."""

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.func import functional_call, vmap

from shoestring.contract.cache import Pass
from shoestring.contract.cost import Shape, trains
from shoestring.contract.model import Notes
from shoestring.contract.role import VECTOR
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model.cache import ContiguousLayer
from shoestring.model.documents import by_document
from shoestring.model.recurrent_cache import together
from shoestring.model.segments import Positions, SegmentPiece, SegmentState
from shoestring.model.span import Inner, InnerLayers, Span, Where


@method(
    "model",
    kind="span",
    name="recurrent_memory",
    paper="Diagonal Batching Unlocks Parallelism in Recurrent Memory Transformers for Long Contexts, arXiv:2506.05229",
    claim="3.3 times as fast as full attention and 1.8 times as fast as one segment after the other, of LLaMA-1B at 131,072 tokens",
    cost="that of the layers within on segments, and 2 `memory` tokens a segment; a cache of one segment and the memory",
)
class RecurrentMemory(Span):
    """The text goes through the layers within in segments; each layer hands a few memory vectors to the next segment.

    Danil Sivtsov et al., 2025, arXiv:2506.05229; memory tokens: Aydar Bulatov et al., 2022, arXiv:2207.06881.

    Cell (s, l), of segment s and layer l: (_, x_{s,l+1}, w_{s,l+1}) = layer_l(m_{s,l}, x_{s,l}, w_{s,l}), causal; m_{s+1,l} is
    w_{s,l+1}; w_{s,0} and m_{0,l} are learnt. So cell (s, l) needs (s, l - 1) and (s - 1, l) alone, and all cells with s + l = d
    are computed together: their weights are stacked, and each matrix is one grouped product. x: [B, T, width].

    Memory that is read has the position of its segment's first token, memory that is written that of the last.

    Cost: linear in T. State: one segment's keys and values and `memory` vectors of each layer, whatever the length.
    Different from the papers: memory is vectors of each layer, where ARMT has associative matrices and the first RMT hands on those
    of the last layer, which leaves nothing to do together. Attention of a diagonal goes cell by cell where torch's kernel cannot be
    grouped, as on CPUs. Packed documents are read apart, and parts of segments that are decoded in plain order.

    segment: tokens of one. memory: vectors. order: 'diagonal', or 'plain', one cell after the other, with the same result.
    """

    compiles = False
    roles: ClassVar[dict[str, str]] = {"start": VECTOR, "write": VECTOR}

    def __init__(
        self,
        width: int,
        *,
        segment: Annotated[int, Interval(ge=1, le=1 << 20)] = 128,
        memory: Annotated[int, Interval(ge=1, le=4096)] = 8,
        order: Literal["diagonal", "plain"] = "diagonal",
    ) -> None:
        super().__init__()
        self.segment, self.order = segment, order
        self.start, self.write = (nn.Parameter(torch.empty(memory, width)) for _ in range(2))
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """As embeddings: normal, of standard deviation 1 / (2 sqrt(width))."""
        for memory in (self.start, self.write):
            memory.normal_(std=0.5 * memory.shape[1] ** -0.5)

    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        blocks, tables = self._layers(inner, where)
        tables = tuple(Positions(*(t.expand(*x.shape[:2], 1, t.shape[-1]) for t in table)) for table in tables)
        if caches[0] is not None:
            return self._decode(blocks, x, tables, caches), {}
        if where.documents is None:
            return self._alone(blocks, x, tables), {}
        flat = [x, *(part for table in tables for part in table)]

        def run(x: Tensor, *parts: Tensor) -> Tensor:
            both = zip(parts[::2], parts[1::2], strict=True)
            return self._alone(blocks, x, tuple(Positions(cos, sin) for cos, sin in both))

        return by_document(run, where.documents, flat), {}

    def _layers(self, inner: Inner, where: Where) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """(the layers within, the tables of each). Raises: UsageError for layers, or a mask, that segments do not go with."""
        if not isinstance(inner, InnerLayers):
            raise UsageError("recurrent_memory takes the layers within apart, and got a function")
        for block in inner.blocks:
            if block.recurrent or block.tells or block.early:
                raise UsageError(
                    "the layers within recurrent_memory must be attention or the like, without a state or notes"
                )
        if where.mask is not None and where.documents is None:
            raise UsageError("recurrent_memory reads tokens in order: it takes no mask")
        return inner.blocks, tuple(where.tables[number] for number in inner.tables)

    def _alone(self, blocks: Sequence[Any], x: Tensor, tables: Sequence[Positions]) -> Tensor:
        """[B, T, width], of whole texts."""
        rows, length, width = x.shape
        count = -(-length // self.segment)
        more = count * self.segment - length  # after all tokens, which do not see it
        x = torch.cat((x, x.new_zeros(rows, more, width)), 1)
        tables = [Positions(*(torch.cat((t, t[:, -1:].expand(-1, more, -1, -1)), 1) for t in own)) for own in tables]
        memory = [self.start.to(x.dtype).expand(rows, -1, -1)] * len(blocks)
        return self._segments(blocks, x, tables, memory)[0][:, :length]

    def _segments(
        self, blocks: Sequence[Any], x: Tensor, tables: Sequence[Positions], memory: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """(x [B, n S, width] after all layers, the memory of each layer [B, M, width] after all segments)."""
        size, vectors, kept = self.segment, self.start.shape[0], list(memory)
        count, layers = x.shape[1] // size, len(blocks)
        write = self.write.to(x.dtype).expand(len(x), -1, -1)
        stream = [
            torch.cat((part, write), 1) for part in x.split(size, 1)
        ]  # of each segment, as its next layer reads it
        cells = [
            [(d - layer, layer) for layer in range(layers) if 0 <= d - layer < count] for d in range(count + layers - 1)
        ]
        weights = None
        if self.order == "diagonal" and layers > 1 and count > 1:
            weights = _stacked(blocks)
        else:
            cells = [[(segment, layer)] for segment in range(count) for layer in range(layers)]
        for diagonal in cells:
            given = [torch.cat((kept[layer], stream[segment]), 1) for segment, layer in diagonal]
            own = [
                tables[layer].of(segment * size, (segment + 1) * size).around(vectors, vectors)
                for segment, layer in diagonal
            ]
            if weights is None or len(diagonal) == 1:
                numbers = [layer for _, layer in diagonal]
                found = [blocks[n](given, *at) for n, given, at in zip(numbers, given, own, strict=True)]
            else:
                first, last = diagonal[0][1], diagonal[-1][1] + 1
                positions = (torch.stack([at[part] for at in own]) for part in (0, 1))
                found = _together(blocks[0], weights, first, last, torch.stack(given), *positions)
            for (segment, layer), made in zip(diagonal, found, strict=True):
                stream[segment], kept[layer] = made[:, vectors:], made[:, -vectors:]
        return torch.cat([part[:, :size] for part in stream], 1), kept

    def _decode(self, blocks: Sequence[Any], x: Tensor, tables: Sequence[Positions], caches: Sequence[Any]) -> Tensor:
        """[B, T, width], going on from a state."""
        found = torch.zeros_like(x)
        for rows, held, new in together(caches[0].coming):
            for piece in self.pieces(held, new):
                last = piece.first + piece.tokens
                part = x[rows, piece.first : last]
                own = [Positions(*(t[rows] for t in table)).of(piece.first, last) for table in tables]
                memory = [cache.memory[rows] for cache in caches]
                if piece.segments:
                    made, memory = self._segments(blocks, part, own, [one.to(x.dtype) for one in memory])
                else:
                    made, memory = self._part(blocks, part, own, memory, caches, rows, piece.place)
                found[rows, piece.first : last] = made
                for cache, new_memory in zip(caches, memory, strict=True):
                    cache.memory[rows] = new_memory.to(cache.memory.dtype)
        return found

    def pieces(self, held: int, new: int) -> list[SegmentPiece]:
        """How new tokens are read after those that are held: the rest of a segment, whole ones, and the beginning of one."""
        size, found, first = self.segment, list[SegmentPiece](), 0
        while first < new:
            place = (held + first) % size
            whole = (new - first) // size if not place else 0
            tokens = whole * size if whole else min(size - place, new - first)
            found.append(SegmentPiece(whole, first, tokens, place))
            first += tokens
        return found

    def _part(
        self,
        blocks: Sequence[Any],
        x: Tensor,
        tables: Sequence[Positions],
        memory: Sequence[Tensor],
        caches: Sequence[Any],
        rows: slice,
        place: int,
    ) -> tuple[Tensor, list[Tensor]]:
        """(x [b, m, width] after all layers, the memories), of a part of a segment that begins at `place` of it."""
        vectors, new = self.start.shape[0], x.shape[1]
        before = 0 if place else vectors
        after = vectors if place + new == self.segment else 0
        held = place + vectors if place else 0
        stream, kept = torch.cat((x, self.write.to(x.dtype).expand(len(x), -1, -1)[:, :after]), 1), []
        for block, table, own, cache in zip(blocks, tables, memory, caches, strict=True):
            given = torch.cat((own[:, :before].to(x.dtype), stream), 1)
            segment = ContiguousLayer(cache.segment.keys[rows], cache.segment.values[rows])
            count = len(x)
            segment.begin(Pass([held] * count, [given.shape[1]] * count, given.shape[1], None, x.device))
            stream = block(given, *table.around(before, after), None, segment)[:, before:]
            kept.append(stream[:, new:] if after else own)
        return stream[:, :new], kept

    def new_cache(self, make: Callable[..., Any]) -> Any:
        vectors = self.start.shape[0]
        segment = make(room=self.segment + 2 * vectors)
        if not isinstance(segment, ContiguousLayer):
            raise UsageError("the layers within recurrent_memory must keep plain keys and values, as attention does")
        memory = self.start.detach().to(segment.keys.device, segment.keys.dtype)
        return SegmentState(memory.repeat(len(segment.keys), 1, 1), segment)

    def held(self, token: int, state: int, itemsize: int) -> tuple[int, int]:
        vectors, width = self.start.shape
        return 0, state + token * (self.segment + 2 * vectors) + vectors * width * itemsize

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        vectors, total = self.start.shape[0], 0
        within = self.segment + 2 * vectors
        if shape.backward:
            count = -(-shape.new // self.segment)
            return inner(Shape(shape.rows * count, within, backward=True), inputs or trains(self))
        for piece in self.pieces(shape.past, shape.new):
            if piece.segments:
                total += inner(Shape(shape.rows * piece.segments, within), False)
                continue
            more = (0 if piece.place else vectors) + (vectors if piece.place + piece.tokens == self.segment else 0)
            past = piece.place + vectors if piece.place else 0
            total += inner(Shape(shape.rows, piece.tokens + more, past), False)
        return total


def _stacked(blocks: Sequence[Any]) -> dict[str, Tensor]:
    """The weights of layers that are alike, each [L, ...]. Raises: UsageError where they are not."""
    each = [{**dict(block.named_parameters()), **dict(block.named_buffers())} for block in blocks]
    shapes = [{name: (t.shape, t.dtype) for name, t in own.items()} for own in each]
    if any(own != shapes[0] for own in shapes):
        raise UsageError("layers of a diagonal must be alike to be computed together: set order = 'plain' for the span")
    return {name: torch.stack([own[name] for own in each]) for name in each[0]}


def _together(
    block: Any, weights: dict[str, Tensor], first: int, last: int, x: Tensor, cos: Tensor, sin: Tensor
) -> list[Tensor]:
    """What layers first .. last - 1 make of x [g, B, T, width], each of its own."""
    own = {name: weight[first:last] for name, weight in weights.items()}

    def one(weights: dict[str, Tensor], x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        made: Tensor = functional_call(block, weights, (x, cos, sin))
        return made

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # attention, cell by cell
        return list(vmap(one)(own, x, cos, sin).unbind())
