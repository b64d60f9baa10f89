"""A cache of its own for each row."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch

from shoestring.contract.adapter import NamedAdapters
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Cost
from shoestring.contract.model import Depth, Joins, LanguageModel
from shoestring.decode.blocks import OutOfBlocks
from shoestring.decode.row import Row
from shoestring.decode.text_cache import TextCache, TextStore
from shoestring.decode.work import Read, RowWork
from shoestring.errors import UsageError

TOGETHER = 16
"""Tokens of several rows that are read in one pass, at most. A native call takes so many of numbers (`native_pass.FEW`)."""


class SeparateStore:
    """A cache of the model's own for each row; rows are read one after the other, or together where the model `Joins` them.

    For models whose caches are not keys and values alone. Nothing is shared. Of drafts that are refused a rewindable cache forgets
    the rest; any other goes back to a snapshot, and reads what stays again, in the row's next pass.

    model: whose caches. tokens: to hold in all. rows: how many there may be at a time.
    store: makes the caches; None: the model does.
    """

    def __init__(self, model: LanguageModel, tokens: int, rows: int = 1, *, store: TextStore | None = None) -> None:
        self._model, self._tokens = model, tokens
        self._most, self._store = rows, store
        self._caches: dict[int, Cache] = {}
        self._room: dict[int, int] = {}
        self._drafted: dict[int, tuple[list[int], Any]] = {}
        """Of rows whose last pass had a draft: what it read, and a snapshot of before."""
        self._again: dict[int, list[int]] = {}
        """Tokens of rows that count as held, and are to be read again."""

    @property
    def capacity(self) -> int:
        return self._tokens

    @property
    def free(self) -> int:
        return self._tokens - sum(self._room.values()) if len(self._room) < self._most else 0

    @property
    def longest(self) -> int:
        return self._tokens

    def needed(self, row: Row) -> int:
        return len(row.tokens)

    def expect(self, *, drafts: bool, depth: bool) -> None:
        """Nothing to say here: a pass says it."""

    def notes(self) -> list[str]:
        return []

    def allowed(self, row: Row, tokens: int) -> int:
        cache = self._caches.get(row.number)
        return min(tokens, cache.allowed(len(row.request.prompt))) if isinstance(cache, TextCache) else tokens

    def admit(self, row: Row) -> int:
        self._room[row.number] = 0
        if self._store is not None:  # which takes no memory yet
            self._caches[row.number] = self._store.cache(self._model, self._wanted(row))
        return 0

    def extend(self, row: Row, tokens: int) -> None:
        room = self._wanted(row)
        if self._room[row.number]:
            return
        if room > self._tokens - sum(self._room.values()):
            raise OutOfBlocks(f"a row needs room for {room} tokens, and there is less")
        self._room[row.number] = room
        if self._store is None:
            self._caches[row.number] = self._model.new_cache(1, room)

    def _wanted(self, row: Row) -> int:
        return min(self._model.about.context, len(row.request.prompt) + row.request.max_new_tokens)

    def read(
        self,
        model: LanguageModel,
        works: Sequence[RowWork],
        depth: Depth | None = None,
        adapters: NamedAdapters | None = None,
    ) -> tuple[list[Read], Cost]:
        values = [self._values(work) for work in works]
        plain = depth is None and (adapters is None or all(work.row.request.adapter is None for work in works))
        found, cost = dict[int, Read](), Cost()
        for group in _groups([len(tokens) for tokens in values]) if plain else ():
            own = [works[number] for number in group]
            reads, spent = self._together(model, own, [values[number] for number in group])
            found |= dict(zip(group, reads, strict=False))
            cost += spent
        for number, (work, tokens) in enumerate(zip(works, values, strict=True)):
            if number in found:
                continue
            inputs = Inputs(torch.tensor([tokens], device=model.device))
            name = work.row.request.adapter
            with nullcontext() if adapters is None or name is None else adapters.rows([name]):
                reading = model.read(inputs, self._caches[work.row.number], depth=depth)
            hidden = reading.hidden[0, reading.hidden.shape[1] - work.wanted :]
            cost += reading.cost.beside(Cost(reading.head.flops(work.wanted)))
            found[number] = Read(reading.head.logits(hidden).float().cpu() if work.wanted else hidden, hidden)
        return [found[number] for number in range(len(works))], cost

    def _values(self, work: RowWork) -> list[int]:
        """The tokens that a pass reads of a row; of a draft, what it takes to come back is kept. Raises: UsageError."""
        number, cache = work.row.number, self._caches[work.row.number]
        if work.draft.tokens:
            if isinstance(cache, TextCache):
                raise UsageError("a cache of one text takes no drafts back: decode without a drafter")
            if any(work.draft.parent(place) != place - 1 for place in range(len(work.draft.tokens))):
                raise UsageError("this model reads tokens in order, and no trees of drafts: give a drafter of lines")
            snapshot = None if cache.rewindable else cache.snapshot()
            self._drafted[number] = [*work.tokens, *work.draft.tokens], snapshot
        return [*self._again.get(number, ()), *work.tokens, *work.draft.tokens]

    def _together(
        self, model: LanguageModel, works: Sequence[RowWork], values: Sequence[list[int]]
    ) -> tuple[list[Read], Cost]:
        """What one pass over all of them found; nothing where the model takes them one after the other."""
        new = [len(tokens) for tokens in values]
        caches = [self._caches[work.row.number] for work in works]
        cache = model.joined(caches, new) if isinstance(model, Joins) else None
        if cache is None:
            return [], Cost()
        tokens = torch.tensor([[token for each in values for token in each]], device=model.device)
        rows = torch.arange(len(works), device=model.device).repeat_interleave(torch.tensor(new, device=model.device))
        reading = model.read(Inputs(tokens, None, rows[None]), cache)
        ends = [end - work.wanted for end, work in zip(accumulate(new), works, strict=True)]
        hidden = [reading.hidden[0, end : end + work.wanted] for end, work in zip(ends, works, strict=True)]
        logits = reading.head.logits(torch.cat(hidden)).float().cpu()
        found = [Read(*both) for both in zip(logits.split([work.wanted for work in works]), hidden, strict=True)]
        return found, reading.cost.beside(Cost(reading.head.flops(len(logits))))

    def keep(self, row: Row, first: int, places: Sequence[int]) -> None:
        assert list(places) == list(range(len(places)))
        again = self._again.pop(row.number, [])
        cache = self._caches[row.number]
        if isinstance(cache, TextCache):
            cache.settle(len(row.request.prompt))
        if row.number not in self._drafted:
            return
        read, snapshot = self._drafted.pop(row.number)
        if len(places) == len(read):
            return
        if snapshot is None:
            cache.crop([first + len(places)])
        else:
            cache.restore(snapshot)
            self._again[row.number] = [*again, *read[: len(places)]]

    def fork(self, row: Row, other: Row) -> None:
        room = self._room[row.number]
        if len(self._room) >= self._most or room > self._tokens - sum(self._room.values()):
            raise OutOfBlocks("there is no room for another row")
        self._room[other.number] = room
        self._caches[other.number] = self._caches[row.number].take(torch.tensor([0]))
        if row.number in self._again:
            self._again[other.number] = list(self._again[row.number])

    def drop(self, row: Row) -> None:
        del self._room[row.number]
        for kept in (self._caches, self._drafted, self._again):
            kept.pop(row.number, None)

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    @property
    def elsewhere(self) -> int:
        """Bytes that are not in the memory of the model's device."""
        return sum(getattr(cache, "elsewhere", 0) for cache in self._caches.values())


def _groups(new: Sequence[int]) -> list[list[int]]:
    """Which of the rows with so many new tokens are read together: those with few, up to `TOGETHER` tokens a pass."""
    groups: list[list[int]] = [[]]
    for number, count in enumerate(new):
        if count > TOGETHER:
            continue
        if sum(new[other] for other in groups[-1]) + count > TOGETHER:
            groups.append([])
        groups[-1].append(number)
    return [group for group in groups if len(group) > 1]
