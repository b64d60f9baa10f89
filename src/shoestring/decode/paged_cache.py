"""Keys and values in blocks that rows share: the cache of an engine that reads rows of different lengths in one pass."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache, KeptShape, PackedPass, Segment
from shoestring.decode.blocks import BlockPool, Table
from shoestring.errors import ShoestringError, UsageError
from shoestring.kernels import attention
from shoestring.kernels.attention import Layers, Rows, Span, in_blocks
from shoestring.kernels.decoder import CachePlaces

TOGETHER = 32
"""New tokens of a row up to which rows are attended to in one call, padded to the longest; beyond, each by itself."""


class Group(NamedTuple):
    """Rows of a pass with as many new tokens each, attended to in one call.

    places: [g n] of the pass. slots: [g, S] of the store, of every token that a row sees, padding at the end.
    visible: [g, 1, n, S], which of them a new token sees.
    distance: [g, n, S], how many positions a key lies behind the new token.
    """

    places: Tensor
    slots: Tensor
    visible: Tensor
    distance: Tensor

    def to(self, device: torch.device) -> "Group":
        """The same on another device."""
        return Group(*(tensor.to(device) for tensor in self))


class PagePlan:
    """Where a pass writes and reads, for all layers.

    written: [N], the slots of the new tokens.
    rows: for native attention; None where a mask says what is seen.
    """

    def __init__(self, coming: PackedPass, slots: Sequence[Any], rows: Rows | None) -> None:
        """slots: of each segment, of all its tokens."""
        self._coming, self._slots, self.rows = coming, slots, rows
        written = numpy.concatenate([all_[one.held :] for one, all_ in zip(coming.segments, slots, strict=True)])
        self.written = torch.from_numpy(written).to(coming.device)

    @cached_property
    def apart(self) -> tuple[tuple[slice, ...], tuple[Group, ...]]:
        """(places of rows that held nothing before, groups of the other rows): for attention by torch."""
        coming, alike, fresh = self._coming, dict[int, list[int]](), list[slice]()
        for index, one in enumerate(coming.segments):
            if not one.held and one.new > 1 and coming.mask is None:
                fresh.append(slice(one.start, one.start + one.new))
                continue
            alike.setdefault(one.new if one.new <= TOGETHER else -index - 1, []).append(index)
        groups = tuple(_group(coming, self._slots, which).to(coming.device) for which in alike.values())
        return tuple(fresh), groups


class PagedLayer:
    """The keys and values of one layer, [slots, Hk, D] each. A slot is a place of a block.

    On the CPU, with a native kernel and no mask, attention reads keys and values where they are. Else torch attends: it gathers
    the slots of each row, which copies them.
    """

    rewindable = True

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self._plan: PagePlan | None = None

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def begin(self, coming: Any) -> None:
        self._plan = coming

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`."""
        plan = self._plan
        assert plan is not None
        self.keys[plan.written] = keys[0].transpose(0, 1)
        self.values[plan.written] = values[0].transpose(0, 1)
        if plan.rows is not None and attention.fits(queries, self.keys, self.values):
            asked = queries[0].transpose(0, 1)
            answered = attention.attend(asked, self.keys, self.values, plan.rows, scale=scale, window=window)
            return answered.to(queries.dtype).transpose(0, 1)[None]
        fresh, groups = plan.apart
        heads = queries.shape[1]
        found = torch.empty(*queries.shape[:3], values.shape[3], dtype=queries.dtype, device=queries.device)
        grouped = heads != self.keys.shape[1]
        for part in fresh:  # a row's own keys and values are all that it sees, and nothing is gathered
            size = part.stop - part.start
            each, mask = (queries[:, :, part], keys[:, :, part], values[:, :, part]), None
            if window is not None and size > window:
                mask = torch.ones(size, size, dtype=torch.bool, device=keys.device).tril().triu(1 - window)
            found[:, :, part] = F.scaled_dot_product_attention(
                *each, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
            )
        for group in groups:
            rows, width = group.slots.shape
            shape = rows, -1, heads, queries.shape[3]
            asked = queries[0, :, group.places].transpose(0, 1).reshape(shape).transpose(1, 2)
            seen = group.visible
            if window is not None:
                seen = seen & (group.distance < window)[:, None]
            mixed = F.scaled_dot_product_attention(
                asked,
                self.keys[group.slots.flatten()].view(rows, width, *self.keys.shape[1:]).transpose(1, 2),
                self.values[group.slots.flatten()].view(rows, width, *self.values.shape[1:]).transpose(1, 2),
                attn_mask=seen,
                scale=scale,
                enable_gqa=grouped,
            )
            found[0, :, group.places] = mixed.transpose(1, 2).flatten(0, 1).transpose(0, 1)
        return found


class PagedCache(Cache):
    """A cache whose rows have blocks of one pool. It takes packed passes only: `Inputs.documents` are numbers of its rows.

    pool: which row has which block.
    tables: of each row that there is, by its number.
    held: tokens of each row. The engine changes it, once it knows which tokens of a pass stay.
    """

    def __init__(self, shapes: Sequence[KeptShape], like: Tensor, blocks: int, size: int) -> None:
        """shapes: of each layer. like: of the type and device to keep keys and values in. size: tokens of a block."""
        self.pool = BlockPool(blocks, size)
        self.tables: dict[int, Table] = {}
        self.held: dict[int, int] = {}

        def empty(heads: int, width: int) -> Tensor:
            # zeros and not whatever was there: what is masked is still multiplied, and may not be NaN
            return torch.zeros(blocks * size, heads, width, dtype=like.dtype, device=like.device)

        layers = [PagedLayer(empty(heads, key), empty(heads, value)) for heads, key, value in shapes]
        super().__init__(layers, 0, blocks * size)
        self._plan: PagePlan | None = None

    @property
    def rows(self) -> int:
        return len(self.tables)

    @property
    def length(self) -> int:
        return max(self.held.values(), default=0)

    def begin(self, inputs: Inputs) -> PackedPass:
        """Make ready for a packed pass; every row has its blocks already. Raises: UsageError where it is none."""
        if inputs.rows != 1 or inputs.documents is None:
            raise UsageError(
                "a paged cache takes packed passes: one row, whose documents say to which row a token belongs"
            )
        numbers, counts = inputs.documents[0].unique_consecutive(return_counts=True)
        segments, start = [], 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            segments.append(Segment(number, start, count, self.held[number]))
            start += count
        mask = None if inputs.mask is None else inputs.mask[0]
        coming = PackedPass(segments, mask, inputs.values.device, inputs.positions)
        self._plan = self._planned(coming)
        for layer in self.layers:
            layer.begin(self._plan)
        self._coming = coming
        return coming

    def advance(self) -> None:
        """Count the tokens of this pass as held."""
        assert isinstance(self._coming, PackedPass)
        for segment in self._coming.segments:
            self.held[segment.row] += segment.new
        self._coming = None

    def places(self) -> CachePlaces | None:
        """Where the pass that was begun reads and writes, for a model that reads natively; None where a mask says what is seen, and
        where layers differ."""
        rows = self._plan.rows if self._plan is not None else None
        return None if rows is None or self._native is None else CachePlaces(self._native, rows)

    @cached_property
    def _native(self) -> Layers | None:
        try:
            each = [(layer.keys, layer.values) for layer in self.layers]
            return Layers(
                [(in_blocks(keys, self.pool.size), in_blocks(values, self.pool.size)) for keys, values in each]
            )
        except ShoestringError:  # of different shapes, or of a type or device that the library does not read
            return None

    def copy_block(self, source: int, target: int) -> None:
        """Copy what a block holds, in every layer."""
        size = self.pool.size
        one, other = slice(source * size, (source + 1) * size), slice(target * size, (target + 1) * size)
        for layer in self.layers:
            layer.keys[other] = layer.keys[one]
            layer.values[other] = layer.values[one]

    def keep(self, row: int, first: int, places: Sequence[int]) -> None:
        """Of the tokens that a pass wrote from position `first` of a row on, keep those at these offsets, in this order."""
        if list(places) != list(range(len(places))):
            slots = torch.from_numpy(self._slots(row, self.held[row]))
            source, target = slots[[first + place for place in places]], slots[first : first + len(places)]
            for layer in self.layers:
                layer.keys[target] = layer.keys[source]
                layer.values[target] = layer.values[source]
        self.held[row] = first + len(places)
        self._filled(row, self.held[row])

    def _slots(self, row: int, tokens: int) -> "numpy.ndarray[Any, numpy.dtype[numpy.int64]]":
        """[tokens] int64: where the first tokens of a row are."""
        size = self.pool.size
        blocks = numpy.asarray(self.tables[row].blocks[: -(-tokens // size)], dtype=numpy.int64)
        places: numpy.ndarray[Any, numpy.dtype[numpy.int64]] = (blocks[:, None] * size + numpy.arange(size)).reshape(-1)
        return places[:tokens]

    def _planned(self, coming: PackedPass) -> PagePlan:
        """Where the pass writes and reads."""
        slots = [self._slots(one.row, one.held + one.new) for one in coming.segments]
        rows = None
        if coming.mask is None:
            tables = [self.tables[one.row].blocks for one in coming.segments]
            spans = [Span(one.start, one.new, one.held, t) for one, t in zip(coming.segments, tables, strict=True)]
            rows = Rows(spans, self.pool.size)
        return PagePlan(coming, slots, rows)


def _group(coming: PackedPass, slots: Sequence[Any], which: Sequence[int]) -> Group:
    """The group of these segments, which have as many new tokens each."""
    chosen = [coming.segments[index] for index in which]
    new, longest = chosen[0].new, max(len(slots[index]) for index in which)
    padded = numpy.zeros((len(which), longest), dtype=numpy.int64)
    for place, index in enumerate(which):
        padded[place, : len(slots[index])] = slots[index]
    held = torch.tensor([one.held for one in chosen])
    starts = torch.tensor([one.start for one in chosen])
    keys, offsets = torch.arange(longest), torch.arange(new)
    distance = (held[:, None] + offsets)[:, :, None] - keys
    visible = distance >= 0
    if coming.mask is not None:
        mask, positions = coming.mask.cpu(), coming.positions[0].cpu()
        for place, one in enumerate(chosen):
            own, among = slice(one.start, one.start + new), slice(one.held, one.held + new)
            visible[place, :, among] = mask[own, own]
            # tokens of a tree stand behind one another in the store, and beside one another in the text
            distance[place] = positions[own, None] - keys
            distance[place, :, among] = positions[own, None] - positions[own]
    places = (starts[:, None] + offsets).flatten()
    return Group(places, torch.from_numpy(padded), visible[:, None], distance)
