"""Where an engine keeps what rows have read, and how it reads more of them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shoestring.contract.adapter import NamedAdapters
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache, KeptShape, Plain
from shoestring.contract.cost import Cost
from shoestring.contract.model import Depth, LanguageModel
from shoestring.decode.blocks import OutOfBlocks
from shoestring.decode.paged_cache import PagedCache
from shoestring.decode.row import Draft, Row
from shoestring.errors import UsageError

BLOCK = 16
"""Tokens of a block, where nothing is said."""


NONE = Draft()


@dataclass(frozen=True)
class Work:
    """What a pass reads of one row.

    row: whose. tokens: the next ones of it. draft: tokens that may follow them.
    outputs: whether logits are wanted, after the last of `tokens` (if any) and after each of the draft.
    """

    row: Row
    tokens: Sequence[int]
    draft: Draft = NONE
    outputs: bool = True

    @property
    def new(self) -> int:
        """Places of the pass that it takes."""
        return len(self.tokens) + len(self.draft.tokens)

    @property
    def wanted(self) -> int:
        """Places whose logits are wanted."""
        return bool(self.tokens) + len(self.draft.tokens) if self.outputs else 0


class Read(NamedTuple):
    """What a pass found of one row. logits: float32 [wanted, V], on the CPU. hidden: [wanted, width]."""

    logits: Tensor
    hidden: Tensor


class Store(Protocol):
    """Keeps what rows have read."""

    @property
    def capacity(self) -> int:
        """Tokens that there is room for where nobody uses it."""
        ...

    @property
    def free(self) -> int:
        """Tokens that there is room for now."""
        ...

    def admit(self, row: Row) -> int:
        """Give a row a place. Returns how many of its tokens are there already; at least the last is not."""
        ...

    def extend(self, row: Row, tokens: int) -> None:
        """Make room for so many tokens of a row. Raises: OutOfBlocks, and makes none."""
        ...

    def read(
        self,
        model: LanguageModel,
        works: Sequence[Work],
        depth: Depth | None = None,
        adapters: NamedAdapters | None = None,
    ) -> tuple[list[Read], Cost]:
        """Read all in one pass. depth: which layers it goes through; None: all. adapters: those that requests name; without any,
        all is read with the model alone. Returns (what was found of each, what it cost, the head included, the adapters not)."""
        ...

    def keep(self, row: Row, first: int, places: Sequence[int]) -> None:
        """Of what a pass wrote from position `first` of a row on, keep these offsets, in this order. What the row holds then is
        final."""
        ...

    def fork(self, row: Row, other: Row) -> None:
        """Give `other` what `row` holds."""
        ...

    def drop(self, row: Row) -> None:
        """Take a row's place."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, and of the room for more."""
        ...


def store_for(model: LanguageModel, tokens: int, *, block: int = BLOCK, rows: int = 1) -> Store:
    """The store that suits a model: blocks where all layers keep keys and values, else a cache for each row.

    tokens: to hold in all. block: tokens of a block. rows: how many there may be at a time.
    """
    try:
        paged = _shapes(model) is not None
    except UsageError:  # of a wrapped model that keeps nothing of its own in some layer
        paged = False
    if not paged:
        return SeparateStore(model, tokens, rows)
    # a row's last block is seldom full
    return PagedStore(model, -(-tokens // block) + rows, block)


def _shapes(model: LanguageModel) -> tuple[list[KeptShape], Tensor] | None:
    """(what each layer keeps of a token, a tensor of the type and device to keep it in); None where one keeps something else."""
    layers = model.new_cache(1, 1).layers
    if not layers or not all(isinstance(layer, Plain) for layer in layers):
        return None
    return [layer.shape for layer in layers], layers[0].keys


class PagedStore:
    """Blocks that rows share, read in one packed pass.

    model: for the shapes. blocks: how many. block: tokens of each.
    """

    def __init__(self, model: LanguageModel, blocks: int, block: int = BLOCK) -> None:
        kept = _shapes(model)
        if kept is None:
            raise UsageError("a layer of this model keeps something other than keys and values: it has no blocks")
        self.cache = PagedCache(*kept, blocks, block)

    @property
    def capacity(self) -> int:
        return len(self.cache.pool.blocks) * self.cache.pool.size

    @property
    def free(self) -> int:
        return self.cache.pool.free * self.cache.pool.size

    def admit(self, row: Row) -> int:
        cache = self.cache
        table = cache.pool.match(row.tokens[:-1], row.request.adapter or 0)
        cache.tables[row.number] = table
        cache.held[row.number] = len(table.blocks) * cache.pool.size
        return cache.held[row.number]

    def extend(self, row: Row, tokens: int) -> None:
        cache, table = self.cache, self.cache.tables[row.number]
        held = cache.held[row.number]
        copied = cache.pool.own(table, held, tokens - held)
        if copied is not None:
            cache.copy_block(*copied)
        cache.pool.extend(table, tokens)

    def read(
        self,
        model: LanguageModel,
        works: Sequence[Work],
        depth: Depth | None = None,
        adapters: NamedAdapters | None = None,
    ) -> tuple[list[Read], Cost]:
        values = [token for work in works for token in (*work.tokens, *work.draft.tokens)]
        numbers = [work.row.number for work in works for _ in range(work.new)]
        positions, mask = _tree(works)
        inputs = Inputs(torch.tensor([values]), positions, torch.tensor([numbers]), mask=mask).to(model.device)
        with _with_adapters(adapters, works):
            reading = model.read(inputs, self.cache, depth=depth)
        wanted: list[int] = []
        end = 0
        for work in works:
            end += work.new
            wanted += range(end - work.wanted, end)
        hidden = reading.hidden[0, torch.tensor(wanted, dtype=torch.int64, device=reading.hidden.device)]
        logits = reading.head.logits(hidden).float().cpu() if wanted else hidden
        sizes = [work.wanted for work in works]
        found = [Read(*both) for both in zip(logits.split(sizes), hidden.split(sizes), strict=True)]
        return found, reading.cost.beside(Cost(reading.head.flops(len(wanted))))

    def keep(self, row: Row, first: int, places: Sequence[int]) -> None:
        cache = self.cache
        cache.keep(row.number, first, places)
        table, held = cache.tables[row.number], cache.held[row.number]
        cache.pool.crop(table, held)
        # what some layer knows nothing of is of no use to others
        whole = min(cache.left_out.get(row.number, {}).values(), default=held)
        cache.pool.register(table, row.tokens[: min(held, whole)])

    def fork(self, row: Row, other: Row) -> None:
        self.cache.tables[other.number] = self.cache.pool.fork(self.cache.tables[row.number])
        self.cache.held[other.number] = self.cache.held[row.number]
        if row.number in self.cache.left_out:
            self.cache.left_out[other.number] = dict(self.cache.left_out[row.number])

    def drop(self, row: Row) -> None:
        self.cache.pool.clear(self.cache.tables.pop(row.number))
        del self.cache.held[row.number]
        self.cache.left_out.pop(row.number, None)

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def check(self) -> None:
        """Raises: AssertionError where a block is lost or shared wrongly."""
        self.cache.pool.check(self.cache.tables.values())
        size = self.cache.pool.size
        for number, table in self.cache.tables.items():
            assert len(table.blocks) * size >= self.cache.held[number], f"row {number} holds more than its blocks"


def _with_adapters(adapters: NamedAdapters | None, works: Sequence[Work]) -> AbstractContextManager[None]:
    """While the tokens of each work are read with the adapter that its request names."""
    if adapters is None or all(work.row.request.adapter is None for work in works):
        return nullcontext()
    return adapters.tokens([work.row.request.adapter for work in works for _ in range(work.new)])


def _tree(works: Sequence[Work]) -> tuple[Tensor | None, Tensor | None]:
    """([1, N] positions, [1, N, N] mask) of a pass in which some draft is a tree; None, None where none is."""
    if all(work.draft.parents is None for work in works):
        return None, None
    total = sum(work.new for work in works)
    mask, positions, start = torch.zeros(total, total, dtype=torch.bool), list[int](), 0
    for work in works:
        first, own = work.row.held, len(work.tokens)
        mask[start : start + work.new, start : start + own] = torch.ones(work.new, own, dtype=torch.bool).tril()
        positions += range(first, first + own)
        for place in range(len(work.draft.tokens)):
            seen, line = start + own + place, place
            while line >= 0:
                mask[seen, start + own + line] = True
                line = work.draft.parent(line)
            positions.append(first + own + work.draft.depth(place))
        start += work.new
    return torch.tensor([positions]), mask[None]


class SeparateStore:
    """A cache of the model's own for each row; rows are read one after the other. For models whose caches are not keys and values
    alone. Nothing is shared.

    model: whose caches. tokens: to hold in all. rows: how many there may be at a time.
    """

    def __init__(self, model: LanguageModel, tokens: int, rows: int = 1) -> None:
        self._model, self._tokens = model, tokens
        self._most = rows
        self._caches: dict[int, Cache] = {}
        self._room: dict[int, int] = {}

    @property
    def capacity(self) -> int:
        return self._tokens

    @property
    def free(self) -> int:
        return self._tokens - sum(self._room.values()) if len(self._room) < self._most else 0

    def admit(self, row: Row) -> int:
        self._room[row.number] = 0
        return 0

    def extend(self, row: Row, tokens: int) -> None:
        room = self._wanted(row)
        if self._room[row.number]:
            return
        if room > self._tokens - sum(self._room.values()):
            raise OutOfBlocks(f"a row needs room for {room} tokens, and there is less")
        self._room[row.number] = room
        self._caches[row.number] = self._model.new_cache(1, room)

    def _wanted(self, row: Row) -> int:
        return min(self._model.about.context, len(row.request.prompt) + row.request.max_new_tokens)

    def read(
        self,
        model: LanguageModel,
        works: Sequence[Work],
        depth: Depth | None = None,
        adapters: NamedAdapters | None = None,
    ) -> tuple[list[Read], Cost]:
        found, cost = [], Cost()
        for work in works:
            if work.draft.tokens:
                raise UsageError("this model reads one row at a time, and no drafts: decode without a drafter")
            inputs = Inputs(torch.tensor([work.tokens], device=model.device))
            with _with_adapters(adapters, [work]):
                reading = model.read(inputs, self._caches[work.row.number], depth=depth)
            hidden = reading.hidden[0, reading.hidden.shape[1] - work.wanted :]
            cost += reading.cost.beside(Cost(reading.head.flops(work.wanted)))
            found.append(Read(reading.head.logits(hidden).float().cpu() if work.wanted else hidden, hidden))
        return found, cost

    def keep(self, row: Row, first: int, places: Sequence[int]) -> None:
        assert list(places) == list(range(len(places)))

    def fork(self, row: Row, other: Row) -> None:
        room = self._room[row.number]
        if len(self._room) >= self._most or room > self._tokens - sum(self._room.values()):
            raise OutOfBlocks("there is no room for another row")
        self._room[other.number] = room
        self._caches[other.number] = self._caches[row.number].take(torch.tensor([0]))

    def drop(self, row: Row) -> None:
        del self._room[row.number]
        self._caches.pop(row.number, None)

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())
