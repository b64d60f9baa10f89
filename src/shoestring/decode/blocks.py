"""Blocks of a store: which are free, who uses which, and which hold the beginning of a text that others may share."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoestring.errors import ShoestringError


class OutOfBlocks(ShoestringError):
    """No block is free: end or preempt a row."""


class BlockKey(NamedTuple):
    """What a full block holds: these tokens, after the block of number `before` among all that were ever registered.

    before: of a first block, the root: 0, or what the model read it with; texts of different roots share nothing.
    """

    before: int | str
    tokens: tuple[int, ...]


@dataclass
class CacheBlock:
    """users: rows that have it. key, serial: of a full block that was registered, what it holds and its number; else None, 0."""

    users: int = 0
    key: BlockKey | None = None
    serial: int = 0


@dataclass
class Table:
    """The blocks of one row, in order.

    blocks: their numbers.
    serials: of those that are registered, from the first on, their numbers among all that ever were.
    root: what the model reads the row with, where that is not the model alone; see `BlockKey`.
    """

    blocks: list[int] = field(default_factory=list)
    serials: list[int] = field(default_factory=list)
    root: int | str = 0


class BlockPool:
    """Blocks of `size` tokens. A block has as many users as rows hold it. A full block can be registered by what it holds, with
    all that stands before it; another row with the same beginning then shares it. Without a user, a registered block is kept
    until its room is needed, the longest unused first.

    count: how many there are. size: tokens of each.
    """

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self.blocks = [CacheBlock() for _ in range(count)]
        self._empty = list(range(count - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Registered blocks without a user, the longest unused first."""
        self._known: dict[BlockKey, int] = {}
        self._registered = 0

    @property
    def free(self) -> int:
        """Blocks that a row can still have."""
        return len(self._empty) + len(self._kept)

    def needed(self, table: Table, tokens: int) -> int:
        """Blocks that a row lacks to hold so many tokens."""
        return max(0, -(-tokens // self.size) - len(table.blocks))

    def match(self, tokens: Sequence[int], root: int | str = 0) -> Table:
        """The registered blocks that hold the longest beginning of `tokens`; the caller becomes a user of each."""
        table, before = Table(root=root), root
        for start in range(0, len(tokens) - self.size + 1, self.size):
            number = self._known.get(BlockKey(before, tuple(tokens[start : start + self.size])))
            if number is None:
                break
            self._use(number)
            before = self.blocks[number].serial
            table.blocks.append(number)
            table.serials.append(before)
        return table

    def extend(self, table: Table, tokens: int) -> None:
        """Give a row the blocks that it lacks to hold so many tokens. Raises: OutOfBlocks, and gives none."""
        lacking = self.needed(table, tokens)
        if lacking > self.free:
            raise OutOfBlocks(f"{lacking} blocks are needed and {self.free} are free")
        table.blocks.extend(self._take() for _ in range(lacking))

    def own(self, table: Table, held: int, new: int) -> tuple[int, int] | None:
        """Make sure that the row alone has the block in which tokens held .. held + new - 1 begin.

        Returns (from, to), where the contents of a block must be copied; None where nothing is to be done.
        Raises: OutOfBlocks.
        """
        place = held // self.size
        if not new or place >= len(table.blocks) or held % self.size == 0:
            return None
        shared = table.blocks[place]
        if self.blocks[shared].users == 1:
            self._unregister(shared)  # it is written over
            return None
        own = self._take()
        table.blocks[place] = own
        self._release(shared)
        return shared, own

    def renew(self, table: Table, tokens: int) -> None:
        """Give a row blocks for so many tokens that are all to be written anew, in place of those that it has.

        Blocks that others have, or may want again, stay as they are as long as there are others. Nothing that the row held is in
        its blocks any more: read it before. Raises: OutOfBlocks, and changes nothing.
        """
        needed = -(-tokens // self.size)
        mine = [number for number in table.blocks if self.blocks[number].users == 1]
        chosen = [number for number in mine if self.blocks[number].key is None][:needed]
        known = [number for number in mine if self.blocks[number].key is not None]
        lacking = needed - len(chosen)
        if lacking > self.free + len(known):
            raise OutOfBlocks(f"{lacking} blocks are needed and {self.free} are free")
        fresh = [self._take() for _ in range(min(lacking, self.free))]
        over = known[: lacking - len(fresh)]
        for number in over:  # nobody else has it, and there is no other
            self._unregister(number)
        chosen += fresh + over
        stays = set(chosen)
        self._give_back([number for number in table.blocks if number not in stays])
        table.blocks, table.serials = chosen, []

    def register(self, table: Table, tokens: Sequence[int]) -> None:
        """Let others share the blocks that `tokens`, all that the row holds for good, fill."""
        for place in range(len(table.serials), len(tokens) // self.size):
            before = table.serials[-1] if table.serials else table.root
            key = BlockKey(before, tuple(tokens[place * self.size : (place + 1) * self.size]))
            known = self._known.get(key)
            if known is None:
                block = self.blocks[table.blocks[place]]
                self._registered += 1
                block.key, block.serial = key, self._registered
                self._known[key] = table.blocks[place]
                known = table.blocks[place]
            table.serials.append(self.blocks[known].serial)

    def fork(self, table: Table) -> Table:
        """Another row with the same blocks."""
        for number in table.blocks:
            self._use(number)
        return Table(list(table.blocks), list(table.serials), table.root)

    def crop(self, table: Table, tokens: int) -> None:
        """Give back the blocks beyond the first `tokens` tokens."""
        keep = -(-tokens // self.size)
        self._give_back(table.blocks[keep:])
        del table.blocks[keep:]
        del table.serials[tokens // self.size :]

    def clear(self, table: Table) -> None:
        """Give back all blocks of a row."""
        self.crop(table, 0)

    def forget(self) -> None:
        """Let go of every registered block that has no user."""
        while self._kept:
            number, _ = self._kept.popitem(last=False)
            self._unregister(number)
            self._empty.append(number)

    def check(self, tables: Iterable[Table]) -> None:
        """Raises: AssertionError where the books are wrong. tables: of all rows."""
        users = [0] * len(self.blocks)
        for table in tables:
            assert len(set(table.blocks)) == len(table.blocks), "a row has a block twice"
            assert len(table.serials) <= len(table.blocks), "a row has fewer blocks than are registered"
            for number in table.blocks:
                users[number] += 1
        assert users == [block.users for block in self.blocks], "users and tables disagree"
        free, kept = set(self._empty), set(self._kept)
        assert len(free) == len(self._empty), "a block is free twice"
        assert not free & kept, "a block is both free and kept"
        for number, block in enumerate(self.blocks):
            assert (block.users == 0) == (number in free or number in kept), f"block {number} is lost"
            assert (block.key is not None) == (self._known.get(block.key) == number if block.key else False)
            assert number not in free or block.key is None, f"free block {number} is registered"
        assert len(self._known) == sum(block.key is not None for block in self.blocks)

    def _take(self) -> int:
        if self._empty:
            number = self._empty.pop()
        elif self._kept:
            number, _ = self._kept.popitem(last=False)
            self._unregister(number)
        else:
            raise OutOfBlocks("no block is free")
        self.blocks[number].users = 1
        return number

    def _use(self, number: int) -> None:
        self._kept.pop(number, None)
        self.blocks[number].users += 1

    def _release(self, number: int) -> None:
        block = self.blocks[number]
        block.users -= 1
        if block.users:
            return
        if block.key is None:
            self._empty.append(number)
        else:
            self._kept[number] = None

    def _give_back(self, numbers: Sequence[int]) -> None:
        for number in reversed(numbers):  # the last first: what follows is of use only with what stands before it
            self._release(number)

    def _unregister(self, number: int) -> None:
        block = self.blocks[number]
        if block.key is not None:
            del self._known[block.key]
            block.key, block.serial = None, 0
