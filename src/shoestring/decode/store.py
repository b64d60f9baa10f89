"""Where an engine keeps what rows have read, and how it reads more of them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

import torch
from torch import Tensor

from shoestring.contract.adapter import NamedAdapters
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import KeptShape, Plain
from shoestring.contract.cost import Cost
from shoestring.contract.model import Depth, LanguageModel
from shoestring.decode.blocks import OutOfBlocks
from shoestring.decode.cache_policy import CachePolicy
from shoestring.decode.cache_store import CacheStore
from shoestring.decode.eviction import Eviction, Limit
from shoestring.decode.paged_cache import PagedCache
from shoestring.decode.row import Row
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.work import Read, RowWork
from shoestring.errors import UsageError

BLOCK = 16
"""Tokens of a block, where nothing is said."""


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
        works: Sequence[RowWork],
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
        """Bytes of all that is kept, and of the room for more, in the memory of the model's device."""
        ...

    @property
    def elsewhere(self) -> int:
        """Bytes of what is kept elsewhere."""
        ...

    def needed(self, row: Row) -> int:
        """What a row takes of `capacity` to read the tokens that it has."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of the longest row that there can be."""
        ...

    def expect(self, *, drafts: bool, depth: bool) -> None:
        """Raises: UsageError where it cannot do with drafts, or with layers that are left out."""
        ...

    def notes(self) -> list[str]:
        """A line each for what a user should know of how it went."""
        ...

    def allowed(self, row: Row, tokens: int) -> int:
        """How many of so many next tokens of a row may be read in one pass: at least 1."""
        ...


def store_for(model: LanguageModel, tokens: int, *, block: int = BLOCK, rows: int = 1) -> Store:
    """The store that suits a model: blocks where all layers keep keys and values, else a cache for each row.

    tokens: to hold in all. block: tokens of a block. rows: how many there may be at a time.
    """
    try:
        paged = shapes_of(model) is not None
    except UsageError:  # of a wrapped model that keeps nothing of its own in some layer
        paged = False
    if not paged:
        return SeparateStore(model, tokens, rows)
    # a row's last block is seldom full
    return PagedStore(model, -(-tokens // block) + rows, block)


def shapes_of(model: LanguageModel) -> tuple[list[KeptShape], Tensor] | None:
    """(what each layer keeps of a token, a tensor of the type and device to keep it in); None where one keeps something else."""
    layers = model.new_cache(1, 1).layers
    if not layers or not all(isinstance(layer, Plain) for layer in layers):
        return None
    return [layer.shape for layer in layers], layers[0].keys


class PagedStore:
    """Blocks that rows share, read in one packed pass.

    model: for the shapes. blocks: how many. block: tokens of each.
    store: how keys and values are held; None: as they are.
    policy: which tokens of a row stay where it may not have all; None: all stay. limit: how many may stay, and when some go.
    longest: tokens of the longest row that `limit` lets in; None: as many as there is room for.
    """

    def __init__(
        self,
        model: LanguageModel,
        blocks: int,
        block: int = BLOCK,
        *,
        store: CacheStore | None = None,
        policy: CachePolicy | None = None,
        limit: Callable[[Row], Limit] | None = None,
        longest: int | None = None,
    ) -> None:
        kept = shapes_of(model)
        if kept is None:
            raise UsageError("a layer of this model keeps something other than keys and values: it has no blocks")
        if (policy is None) != (limit is None):
            raise UsageError("a policy and a limit go together: give both, or neither")
        self.eviction = None if policy is None else Eviction(policy, kept[0])
        self.cache = PagedCache(*kept, blocks, block, store=store, eviction=self.eviction)
        self._limit = limit
        self._longest = longest
        self._limits: dict[int, Limit] = {}
        self.evicted = 0
        """Places that rows lost."""

    @property
    def capacity(self) -> int:
        return len(self.cache.pool.blocks) * self.cache.pool.size

    @property
    def free(self) -> int:
        return self.cache.pool.free * self.cache.pool.size

    @property
    def longest(self) -> int:
        return self.capacity if self._longest is None else self._longest

    def needed(self, row: Row) -> int:
        if self._limit is None:
            return len(row.tokens)
        limit = self._limit(row)
        return max(len(row.request.prompt), limit.most) if limit.whole else min(len(row.tokens), limit.most)

    def expect(self, *, drafts: bool, depth: bool) -> None:
        if depth and self.eviction is not None:
            raise UsageError("a cache that evicts tokens holds those of all layers: give a depth or a policy, not both")
        if drafts and self.eviction is not None and self.eviction.watches:
            raise UsageError(
                f"the policy {type(self.eviction.policy).__name__} looks at the queries of tokens that stay, and drafts may not: "
                "leave the drafter out, or take a policy that looks at keys alone"
            )

    def notes(self) -> list[str]:
        if self.eviction is None or self.evicted:
            return []
        return ["the cache policy evicted nothing, and so freed nothing: every text had room for all of its tokens"]

    def allowed(self, row: Row, tokens: int) -> int:
        limit = self._limits.get(row.number)
        if limit is None:
            return tokens
        held, read = self._at(row)
        prompt = len(row.request.prompt)
        held = limit.kept if limit.due(held, read, prompt) else held
        return min(tokens, limit.allowed(held, read, prompt))

    def admit(self, row: Row) -> int:
        cache = self.cache
        known = row.tokens[:-1]
        if self._limit is not None:
            limit = self._limits[row.number] = self._limit(row)
            known = known[
                : len(row.request.prompt) if limit.whole else limit.most
            ]  # beyond, another text's cuts differ
        if self.eviction is not None:
            self.eviction.begin(row.number, cache.device)
            if self.eviction.watches:  # it has to see these tokens read
                known = []
        table = cache.pool.match(known, row.request.adapter or 0)
        cache.tables[row.number] = table
        cache.held[row.number] = len(table.blocks) * cache.pool.size
        return cache.held[row.number]

    def extend(self, row: Row, tokens: int) -> None:
        cache, table = self.cache, self.cache.tables[row.number]
        self._cut(row)
        held, places = cache.held[row.number], tokens - cache.gone.get(row.number, 0)
        copied = cache.pool.own(table, held, places - held)
        if copied is not None:
            cache.copy_block(*copied)
        cache.pool.extend(table, places)

    def _at(self, row: Row) -> tuple[int, int]:
        """(places that a row takes, tokens of it that were read)."""
        held = self.cache.held[row.number]
        return held, held + self.cache.gone.get(row.number, 0)

    def _cut(self, row: Row) -> None:
        """Have a row give up places, where it is time. Raises: OutOfBlocks, and changes nothing."""
        limit = self._limits.get(row.number)
        held, read = self._at(row)
        if limit is not None and limit.due(held, read, len(row.request.prompt)):
            self.cache.evict(row.number, limit.kept)
            self.evicted += held - limit.kept

    def read(
        self,
        model: LanguageModel,
        works: Sequence[RowWork],
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
        watched = 0
        if self.eviction is not None:
            watched, self.eviction.flops = self.eviction.flops, 0
        return found, reading.cost.beside(Cost(reading.head.flops(len(wanted)) + watched))

    def keep(self, row: Row, first: int, places: Sequence[int]) -> None:
        cache = self.cache
        cache.keep(row.number, first, places)
        table, held = cache.tables[row.number], cache.held[row.number]
        cache.pool.crop(table, held)
        if not cache.gone.get(row.number):
            # what some layer knows nothing of is of no use to others
            whole = min(cache.left_out.get(row.number, {}).values(), default=held)
            cache.pool.register(table, row.tokens[: min(held, whole)])
        with suppress(OutOfBlocks):  # others share its blocks: there has to be room before it goes on
            self._cut(row)

    def fork(self, row: Row, other: Row) -> None:
        cache = self.cache
        cache.tables[other.number] = cache.pool.fork(cache.tables[row.number])
        cache.held[other.number] = cache.held[row.number]
        if row.number in cache.gone:
            cache.gone[other.number] = cache.gone[row.number]
        if row.number in self._limits:
            self._limits[other.number] = self._limits[row.number]
        if row.number in cache.left_out:
            cache.left_out[other.number] = dict(cache.left_out[row.number])
        if self.eviction is not None:
            self.eviction.fork(row.number, other.number)

    def drop(self, row: Row) -> None:
        self.cache.drop(row.number)
        self._limits.pop(row.number, None)

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    @property
    def elsewhere(self) -> int:
        """Bytes that are not in the memory of the model's device."""
        return self.cache.elsewhere

    def check(self) -> None:
        """Raises: AssertionError where a block is lost or shared wrongly."""
        self.cache.pool.check(self.cache.tables.values())
        size = self.cache.pool.size
        for number, table in self.cache.tables.items():
            assert len(table.blocks) * size >= self.cache.held[number], f"row {number} holds more than its blocks"


def _with_adapters(adapters: NamedAdapters | None, works: Sequence[RowWork]) -> AbstractContextManager[None]:
    """While the tokens of each work are read with the adapter that its request names."""
    if adapters is None or all(work.row.request.adapter is None for work in works):
        return nullcontext()
    return adapters.tokens([work.row.request.adapter for work in works for _ in range(work.new)])


def _tree(works: Sequence[RowWork]) -> tuple[Tensor | None, Tensor | None]:
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
