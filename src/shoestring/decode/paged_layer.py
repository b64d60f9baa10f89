"""Attention of one layer to keys and values in blocks that rows share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from shoestring.contract.cache import PackedPass
from shoestring.contract.grouped_attention import grouped_attention
from shoestring.decode.cache_policy import attention_of
from shoestring.decode.cache_store import Side
from shoestring.decode.eviction import Eviction
from shoestring.kernels import attention
from shoestring.kernels.attention import BlockRows

TOGETHER = 32
"""New tokens of a row up to which rows are attended to in one call, padded to the longest; beyond, each by itself."""


WHOLE = 128
"""Tokens of a text that is read at once from which torch's attention in bfloat16 is faster than the native kernel, which multiplies
float32, where the processor multiplies bfloat16."""


class Group(NamedTuple):
    """BlockRows of a pass with as many new tokens each, attended to in one call.

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

    def __init__(self, coming: PackedPass, slots: Sequence[Any], rows: BlockRows | None) -> None:
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

    @cached_property
    def whole(self) -> bool:
        """Whether all rows are texts that are long and read from their beginning."""
        return self.coming.mask is None and all(not one.held and one.new >= WHOLE for one in self.coming.segments)

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
        self._plan: PagePlan | None = None

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
            self.watch(queries[0], scale, window)
        return found

    def note_positions(self, plan: PagePlan) -> None:
        """Note which tokens of their texts the new ones are."""
        assert self.positions is not None
        self.positions[plan.written] = plan.coming.positions[0, :, None].to(self.positions)

    def watch(self, queries: Tensor, scale: float | None, window: int | None) -> None:
        """Show the policy the queries [H, N, D] of the pass, and what they look at.

        scale, window: as `attend` takes them.
        """
        plan, eviction = self._plan, self.eviction
        assert plan is not None
        assert eviction is not None
        looks = _Looks(self, plan, queries, queries.shape[2] ** -0.5 if scale is None else scale, window)
        for index, one in enumerate(plan.coming.segments):
            asked, places = queries[:, one.start : one.start + one.new], one.held + one.new
            look = partial(looks.of, index)
            eviction.read(one.row, self.number, asked, places, one.gone + one.held, looks.scale, window, look)

    def _attended(
        self, plan: PagePlan, queries: Tensor, keys: Tensor, values: Tensor, scale: float | None, window: int | None
    ) -> Tensor:
        if window is not None and plan.evicted:
            return self._by_positions(plan, queries, scale, window)
        held = self.key_side.readable, self.value_side.readable
        in_place = plan.rows
        if queries.dtype == torch.bfloat16 and plan.whole and attention.multiplies_bfloat16():
            in_place = None
        if in_place is not None and held[0] is not None and held[1] is not None and attention.fits(queries, *held):  # type: ignore[arg-type]
            asked = queries[0].transpose(0, 1)
            answered = attention.attend(asked, held[0], held[1], in_place, scale=scale, window=window)
            return answered.to(queries.dtype).transpose(0, 1)[None]
        exact = self.key_side.store.exact and self.value_side.store.exact
        fresh, groups = plan.apart if exact else plan.held
        heads, shared = queries.shape[1], keys.shape[1]
        found = torch.empty(*queries.shape[:3], values.shape[3], dtype=queries.dtype, device=queries.device)
        for part in fresh:  # a row's own keys and values are all that it sees, and nothing is gathered
            size = part.stop - part.start
            each, mask = (queries[:, :, part], keys[:, :, part], values[:, :, part]), None
            if window is not None and size > window:
                mask = torch.ones(size, size, dtype=torch.bool, device=keys.device).tril().triu(1 - window)
            found[:, :, part] = grouped_attention(*each, mask=mask, is_causal=mask is None, scale=scale)
        for group in groups:
            rows, width = group.slots.shape
            shape = rows, -1, heads, queries.shape[3]
            asked = queries[0, :, group.places].transpose(0, 1).reshape(shape).transpose(1, 2)
            seen = group.visible
            if window is not None:
                seen = seen & (group.distance < window)[:, None]
            mixed = grouped_attention(
                asked,
                self.key_side.read(group.slots.flatten()).view(rows, width, shared, -1).transpose(1, 2),
                self.value_side.read(group.slots.flatten()).view(rows, width, shared, -1).transpose(1, 2),
                mask=seen,
                scale=scale,
            )
            found[0, :, group.places] = mixed.transpose(1, 2).flatten(0, 1).transpose(0, 1)
        return found

    def _by_positions(self, plan: PagePlan, queries: Tensor, scale: float | None, window: int) -> Tensor:
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
            mixed = grouped_attention(asked, keys, values, mask=visible[None], scale=scale)
            found.append(mixed)
        return torch.cat(found, 2)


@dataclass
class _Looks:
    """What the new tokens of each row of a pass look at, in one layer: natively where that can be, else row by row in torch.

    queries: [H, N, D].
    """

    layer: PagedLayer
    plan: PagePlan
    queries: Tensor
    scale: float
    window: int | None

    def of(self, index: int) -> Tensor:
        """[Hk, G, n, S] of one segment."""
        one, positions = self.plan.coming.segments[index], self.layer.positions
        assert positions is not None
        own, shared = slice(one.start, one.start + one.new), positions.shape[1]
        if self._all is not None:
            return self._all[own, :, : one.held + one.new].unflatten(1, (shared, -1)).permute(1, 2, 0, 3)
        slots = self.plan.places(index)
        held, at = self.layer.key_side.read(slots).transpose(0, 1), positions[slots].T.long()
        return attention_of(self.queries[:, own], held, self.scale, at, one.gone + one.held + one.new, self.window)

    @cached_property
    def _all(self) -> Tensor | None:
        """[N, H, S] of all rows; None where it cannot be made natively."""
        keys, rows = self.layer.key_side.readable, self.plan.rows
        # a window is of positions, and places are none
        if rows is None or keys is None or self.window is not None or not attention.fits(self.queries, keys, keys):
            return None
        return attention.looks(self.queries.transpose(0, 1), keys, rows, scale=self.scale)


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
