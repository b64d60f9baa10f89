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
from shoestring.decode.cache_store import CacheStore, Side
from shoestring.decode.cache_stores.plain import PlainStore
from shoestring.decode.eviction import Eviction
from shoestring.errors import ShoestringError, UsageError
from shoestring.kernels import attention
from shoestring.kernels.attention import Layers, Rows, Span, in_blocks
from shoestring.kernels.decoder import Places

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


class Plan:
    """Where a pass writes and reads, for all layers.

    written: [N], the slots of the new tokens.
    rows: for native attention; None where a mask says what is seen.
    """

    def __init__(self, coming: PackedPass, slots: Sequence[Any], rows: Rows | None) -> None:
        """slots: of each segment, of all its tokens that are there."""
        self.coming, self.slots, self.rows = coming, slots, rows
        written = numpy.concatenate([all_[one.held :] for one, all_ in zip(coming.segments, slots, strict=True)])
        self.written = torch.from_numpy(written).to(coming.device)

    @cached_property
    def apart(self) -> tuple[tuple[slice, ...], tuple[Group, ...]]:
        """(places of rows that held nothing before, groups of the other rows): for attention by torch."""
        coming, alike, fresh = self.coming, dict[int, list[int]](), list[slice]()
        for index, one in enumerate(coming.segments):
            if not one.held and one.new > 1 and coming.mask is None:
                fresh.append(slice(one.start, one.start + one.new))
                continue
            alike.setdefault(one.new if one.new <= TOGETHER else -index - 1, []).append(index)
        groups = tuple(_group(coming, self.slots, which).to(coming.device) for which in alike.values())
        return tuple(fresh), groups

    @cached_property
    def held(self) -> tuple[tuple[slice, ...], tuple[Group, ...]]:
        """As `apart`, with all rows in groups: where what is read is not what was written, all tokens see what is held, so that it
        does not matter in how many passes a text is read."""
        alike = dict[int, list[int]]()
        for index, one in enumerate(self.coming.segments):
            alike.setdefault(one.new if one.new <= TOGETHER else -index - 1, []).append(index)
        device = self.coming.device
        return (), tuple(_group(self.coming, self.slots, which).to(device) for which in alike.values())

    @property
    def evicted(self) -> bool:
        """Whether some text lacks tokens, so that places are no positions."""
        return any(one.gone for one in self.coming.segments)

    def places(self, index: int) -> Tensor:
        """[S] int64: where the tokens of a segment are."""
        return torch.from_numpy(self.slots[index]).to(self.coming.device)


class PagedLayer:
    """The keys and values of one layer, [slots, Hk, D] each. A slot is a place of a block.

    On the CPU, with a native kernel and no mask, attention reads keys and values where they are, if they are held as they are. Else
    torch attends: it gathers the slots of each row, which copies or decodes them.

    number: of the layer. sides: keys and values. positions: [slots, Hk] int32, which token of its text each is; None where nothing
    is evicted. eviction: what a policy wants to know.
    """

    rewindable = True

    def __init__(
        self, number: int, sides: tuple[Side, Side], positions: Tensor | None = None, eviction: Eviction | None = None
    ) -> None:
        self.number, (self.key_side, self.value_side) = number, sides
        self.positions, self.eviction = positions, eviction
        self._plan: Plan | None = None

    @property
    def nbytes(self) -> int:
        held = 0 if self.positions is None else self.positions.nbytes
        return self.key_side.nbytes + self.value_side.nbytes + held

    @property
    def elsewhere(self) -> int:
        """Bytes that are not in the memory of the model's device."""
        return self.key_side.elsewhere + self.value_side.elsewhere

    def begin(self, coming: Any) -> None:
        self._plan = coming

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Put what is at slots `source`, [n] or [Hk, n] of each head, to slots `target` [n]."""
        self.key_side.copy(source, target)
        self.value_side.copy(source, target)
        if self.positions is not None:
            if source.ndim == 2:
                heads = torch.arange(len(source), device=source.device)[:, None]
                self.positions[target] = self.positions[source, heads].T
            else:
                self.positions[target] = self.positions[source]

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`."""
        plan = self._plan
        assert plan is not None
        self.key_side.write(plan.written, keys[0].transpose(0, 1))
        self.value_side.write(plan.written, values[0].transpose(0, 1))
        if self.positions is not None:
            self.note_positions(plan)
        found = self._attended(plan, queries, keys, values, scale, window)
        if self.eviction is not None and self.eviction.watches:
            self._watch(self.eviction, plan, queries, scale, window)
        return found

    def note_positions(self, plan: Plan) -> None:
        """Note which tokens of their texts the new ones are."""
        assert self.positions is not None
        self.positions[plan.written] = plan.coming.positions[0, :, None].to(self.positions)

    def _watch(self, eviction: Eviction, plan: Plan, queries: Tensor, scale: float | None, window: int | None) -> None:
        """Show the policy what the new tokens of each row look at."""
        assert self.positions is not None
        scale = queries.shape[3] ** -0.5 if scale is None else scale
        for index, one in enumerate(plan.coming.segments):
            slots = plan.places(index)
            held, positions = self.key_side.read(slots).transpose(0, 1), self.positions[slots].T.long()
            asked = queries[0, :, one.start : one.start + one.new]
            eviction.read(one.row, self.number, asked, held, positions, one.gone + one.held, scale, window)

    def _attended(
        self, plan: Plan, queries: Tensor, keys: Tensor, values: Tensor, scale: float | None, window: int | None
    ) -> Tensor:
        if window is not None and plan.evicted:
            return self._by_positions(plan, queries, scale, window)
        held = self.key_side.plain, self.value_side.plain
        if plan.rows is not None and held[0] is not None and held[1] is not None and attention.fits(queries, *held):  # type: ignore[arg-type]
            asked = queries[0].transpose(0, 1)
            answered = attention.attend(asked, held[0], held[1], plan.rows, scale=scale, window=window)
            return answered.to(queries.dtype).transpose(0, 1)[None]
        exact = self.key_side.store.exact and self.value_side.store.exact
        fresh, groups = plan.apart if exact else plan.held
        heads, shared = queries.shape[1], keys.shape[1]
        found = torch.empty(*queries.shape[:3], values.shape[3], dtype=queries.dtype, device=queries.device)
        grouped = heads != shared
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
                self.key_side.read(group.slots.flatten()).view(rows, width, shared, -1).transpose(1, 2),
                self.value_side.read(group.slots.flatten()).view(rows, width, shared, -1).transpose(1, 2),
                attn_mask=seen,
                scale=scale,
                enable_gqa=grouped,
            )
            found[0, :, group.places] = mixed.transpose(1, 2).flatten(0, 1).transpose(0, 1)
        return found

    def _by_positions(self, plan: Plan, queries: Tensor, scale: float | None, window: int) -> Tensor:
        """Attention to the latest `window` tokens of texts whose places are no positions: of each head its own."""
        coming, found = plan.coming, list[Tensor]()
        assert self.positions is not None
        for index, one in enumerate(coming.segments):
            own, slots = slice(one.start, one.start + one.new), plan.places(index)
            distance = coming.positions[0, own, None] - self.positions[slots].T[:, None]  # [Hk, n, S]
            visible = (distance >= 0) & (distance < window)
            if coming.mask is not None:
                visible[:, :, one.held :] &= coming.mask[own, own]
            asked = queries[:, :, own]
            visible = visible.repeat_interleave(asked.shape[1] // len(visible), 0)
            keys, values = (side.read(slots).transpose(0, 1)[None] for side in (self.key_side, self.value_side))
            mixed = F.scaled_dot_product_attention(
                asked, keys, values, attn_mask=visible[None], scale=scale, enable_gqa=True
            )
            found.append(mixed)
        return torch.cat(found, 2)


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

        super().__init__([layer(*one) for one in enumerate(shapes)], 0, slots)
        self.device = like.device
        self._plan: Plan | None = None

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
        if inputs.rows != 1 or inputs.documents is None:
            raise UsageError(
                "a paged cache takes packed passes: one row, whose documents say to which row a token belongs"
            )
        numbers, counts = inputs.documents[0].unique_consecutive(return_counts=True)
        segments, start = [], 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            segments.append(Segment(number, start, count, self.held[number], self.gone.get(number, 0)))
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

    def places(self) -> Places | None:
        """Where the pass that was begun reads and writes, for a model that reads natively; None where a mask says what is seen, and
        where layers differ."""
        rows = self._plan.rows if self._plan is not None else None
        if self.eviction is not None and rows is not None:
            if self.eviction.watches:
                return None  # a policy wants to see what goes on within
            for layer in self.layers:  # which the native pass does not write
                layer.note_positions(self._plan)
        return None if rows is None or self._native is None else Places(self._native, rows)

    @cached_property
    def _native(self) -> Layers | None:
        try:
            each = [(layer.key_side.plain, layer.value_side.plain) for layer in self.layers]
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

    def _planned(self, coming: PackedPass) -> Plan:
        """Where the pass writes and reads."""
        slots = [self._slots(one.row, one.held + one.new) for one in coming.segments]
        rows = None
        if coming.mask is None:
            tables = [self.tables[one.row].blocks for one in coming.segments]
            spans = [Span(one.start, one.new, one.held, t) for one, t in zip(coming.segments, tables, strict=True)]
            rows = Rows(spans, self.pool.size)
        return Plan(coming, slots, rows)


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
