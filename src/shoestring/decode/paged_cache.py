"""Keys and values in blocks that rows share: the cache of an engine that reads rows of different lengths in one pass."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy
import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache, KeptShape, PackedPass, Segment, packed_rows
from shoestring.decode.blocks import BlockPool, Table
from shoestring.decode.cache_store import CacheStore, Side
from shoestring.decode.cache_stores.plain import PlainStore
from shoestring.decode.eviction import Eviction
from shoestring.decode.paged_layer import PagedLayer, PagePlan
from shoestring.errors import ShoestringError
from shoestring.kernels import room_for
from shoestring.kernels.attention import BlockRows, BlockSpan, Layers, in_blocks
from shoestring.kernels.decoder import CachePlaces


class PagedCache(Cache):
    """A cache whose rows have blocks of one pool. It takes packed passes only: `Inputs.documents` are numbers of its rows.

    pool: which row has which block.
    tables: of each row that there is, by its number.
    held: places that each row takes. The engine changes it, once it knows which tokens of a pass stay.
    gone: of each row that has lost some, tokens that were read and are not held any more.
    eviction: what a policy wants to know; None where nothing is evicted.
    """

    def __init__(
        self,
        shapes: Sequence[KeptShape],
        like: Tensor,
        blocks: int,
        size: int,
        *,
        store: CacheStore | None = None,
        eviction: Eviction | None = None,
    ) -> None:
        """shapes: of each layer. like: of the type and device to keep keys and values in. size: tokens of a block.

        store: how keys and values are held; None: as they are.
        """
        self.pool = BlockPool(blocks, size)
        self.tables: dict[int, Table] = {}
        self.held: dict[int, int] = {}
        self.gone: dict[int, int] = {}
        self.eviction = eviction
        store = store or PlainStore()
        slots = blocks * size

        def layer(number: int, shape: KeptShape) -> PagedLayer:
            sides = [Side(store, slots, shape.heads, width, like) for width in (shape.key_width, shape.value_width)]
            positions = None
            if eviction is not None:
                positions = torch.zeros(slots, shape.heads, dtype=torch.int32, device=like.device)
            return PagedLayer(number, (sides[0], sides[1]), positions, eviction)

        layers = [layer(*one) for one in enumerate(shapes)]
        _side_by_side([side for one in layers for side in (one.key_side, one.value_side)])
        super().__init__(layers, 0, slots)
        self.device = like.device
        self._plan: PagePlan | None = None

    @property
    def rows(self) -> int:
        return len(self.tables)

    @property
    def length(self) -> int:
        return max(self.held.values(), default=0)

    @property
    def nbytes(self) -> int:
        return super().nbytes + (self.eviction.nbytes if self.eviction is not None else 0)

    @property
    def elsewhere(self) -> int:
        """Bytes that are not in the memory of the model's device."""
        return sum(layer.elsewhere for layer in self.layers)

    def begin(self, inputs: Inputs) -> PackedPass:
        """Make ready for a packed pass; every row has its blocks already. Raises: UsageError where it is none."""
        segments = [
            Segment(number, start, count, self.held[number], self.gone.get(number, 0))
            for number, start, count in packed_rows(inputs)
        ]
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
        if rows is None or self._native is None:
            return None
        watch = None
        if self.eviction is not None:
            for layer in self.layers:  # which the native pass does not write
                layer.note_positions(self._plan)
            watch = self._watch if self.eviction.watches else None
        return CachePlaces(self._native, rows, watch)

    def _watch(self, queries: Tensor) -> None:
        """Show the policy what a native pass asked for: [layers, N, H, D]."""
        for layer, asked in zip(self.layers, queries, strict=True):
            layer.watch(asked.transpose(0, 1), None, None)

    @cached_property
    def _native(self) -> Layers | None:
        try:
            each = [(layer.key_side.readable, layer.value_side.readable) for layer in self.layers]
            held = [(keys, values) for keys, values in each if keys is not None and values is not None]
            if len(held) < len(each):
                return None
            return Layers(
                [(in_blocks(keys, self.pool.size), in_blocks(values, self.pool.size)) for keys, values in held]
            )
        except ShoestringError:  # of different shapes, or of a type or device that the library does not read
            return None

    def copy_block(self, source: int, target: int) -> None:
        """Copy what a block holds, in every layer."""
        places = torch.arange(self.pool.size, device=self.device)
        for layer in self.layers:
            layer.copy(places + source * self.pool.size, places + target * self.pool.size)

    def keep(self, row: int, first: int, places: Sequence[int]) -> None:
        """Of the tokens that a pass wrote from position `first` of a row on, keep those at these offsets, in this order."""
        first -= self.gone.get(row, 0)
        if list(places) != list(range(len(places))):
            slots = torch.from_numpy(self._slots(row, self.held[row])).to(self.device)
            source, target = slots[[first + place for place in places]], slots[first : first + len(places)]
            for layer in self.layers:
                layer.copy(source, target)
        self.held[row] = first + len(places)
        self._filled(row, self.held[row])

    def evict(self, row: int, count: int) -> None:
        """Keep so many places of a row, in each layer and head those that the policy chooses; blocks that become free go back.

        Raises: OutOfBlocks where others share its blocks and none is free, and changes nothing.
        """
        assert self.eviction is not None
        held, read = self.held[row], self.held[row] + self.gone.get(row, 0)
        slots = torch.from_numpy(self._slots(row, held)).to(self.device)
        self.pool.renew(self.tables[row], count)
        target = torch.from_numpy(self._slots(row, count)).to(self.device)
        for (
            layer
        ) in self.layers:  # contents stay until they are written over, and each layer is read before it is written
            keys, values = (side.read(slots).transpose(0, 1) for side in (layer.key_side, layer.value_side))
            positions = layer.positions[slots].T.long()
            layer.copy(slots[self.eviction.choose(row, layer.number, keys, values, positions, read, count)], target)
        self.held[row], self.gone[row] = count, read - count

    def drop(self, row: int) -> None:
        """Forget a row, and give back its blocks."""
        self.pool.clear(self.tables.pop(row))
        del self.held[row]
        self.gone.pop(row, None)
        self.left_out.pop(row, None)
        if self.eviction is not None:
            self.eviction.drop(row)

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
            spans = [BlockSpan(one.start, one.new, one.held, t) for one, t in zip(coming.segments, tables, strict=True)]
            rows = BlockRows(spans, self.pool.size)
        return PagePlan(coming, slots, rows)


def _side_by_side(sides: Sequence[Side]) -> None:
    """Put what is held in the CPU's memory, all zeros as yet, to one run of it: read from end to end for every token that is
    written, it is read faster so."""
    here = [side for side in sides if not side.elsewhere and all(codes.is_cpu for codes in side.codes)]
    places = iter(room_for([codes for side in here for codes in side.codes]))
    for side in here:
        side.codes = tuple(next(places) for _ in side.codes)
