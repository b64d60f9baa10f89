"""What the next pass of an engine reads: rows and tokens by the scheduler, room for them, and drafts."""

import time
from collections.abc import Sequence
from dataclasses import replace

from shoestring.budget.charge import Charge
from shoestring.decode.blocks import OutOfBlocks
from shoestring.decode.depth import RowDepth, alike
from shoestring.decode.drafter import Drafter
from shoestring.decode.pass_cost import divided
from shoestring.decode.pays import Pays
from shoestring.decode.request import Stop
from shoestring.decode.row import Draft, Row
from shoestring.decode.row_queue import RowQueue
from shoestring.decode.scheduler import Passed, Room, Scheduler
from shoestring.decode.store import Store
from shoestring.decode.work import RowWork


class PassPlan:
    """Says what a pass reads, and gives every row of it a place and room.

    rows, tokens: at most, of a pass. context: tokens that a text may have. The others are those of the engine.
    """

    def __init__(
        self,
        queue: RowQueue,
        store: Store,
        scheduler: Scheduler,
        *,
        rows: int,
        tokens: int,
        context: int,
        drafter: Drafter | None,
        depth: RowDepth | None,
        pays: Pays | None,
    ) -> None:
        self._queue, self._store, self._scheduler = queue, store, scheduler
        self._most_rows, self._tokens, self._context = rows, tokens, context
        self._drafter, self._depth, self._pays = drafter, depth, pays

    def next(self, last: Passed | None) -> tuple[list[RowWork], bool]:
        """(what the next pass reads, whether `pays` measures it). last: the pass before."""
        if self._drafter is None:
            return self._works(0, last), False
        most = self._drafter.most
        if self._pays is None:
            return self._drafted(self._drafter, self._works(most, last)), False
        decoding = [row for row in self._queue.rows if row.decoding]
        # a pass that reads prompts says nothing of drafts
        measured = bool(decoding) and len(decoding) == len(self._queue.rows)
        drafts = self._pays.begin(len(decoding)) if measured else self._pays.drafting(len(decoding))
        works = self._works(most if drafts else 0, last)
        return self._drafted(self._drafter, works) if drafts else works, measured

    def _works(self, drafts: int, last: Passed | None) -> list[RowWork]:
        """What the next pass reads, but for drafts; every row of it has its place and its room."""
        room = Room(self._most_rows, self._tokens, self._store.free, drafts, last, self._store.needed)
        works = list[RowWork]()
        for row, count in self._scheduler.plan(self._queue.rows, room):
            if row.stop is not None:
                continue
            if not row.running:
                self._admit(row)
            count = self._store.allowed(row, min(count, row.unread))
            if self._depth is not None:
                count = alike(self._depth, row, count)
                row.charge += self._depth.spent()
            if self._roomy(row, row.held + count, works):
                whole = count == row.unread
                works.append(RowWork(row, row.tokens[row.held : row.held + count], outputs=whole))
        return works

    def _admit(self, row: Row) -> None:
        row.held = self._store.admit(row)
        row.running = True
        row.charge += Charge(reused=max(0, row.held - row.deepest))
        row.deepest = max(row.deepest, row.held)

    def _roomy(self, row: Row, tokens: int, works: Sequence[RowWork]) -> bool:
        """Make room for so many tokens of a row; rows that came later lose theirs for it."""
        while not self._extended(row, tokens):
            chosen = {work.row.number for work in works}
            others = [other for other in self._queue.rows if other.running and other.number not in chosen]
            if others == [row] and not works:
                self._queue.tell(row, (), Stop.ROOM)
                return False
            self._queue.preempt(others[-1])
            if others[-1] is row:
                return False
        return True

    def _drafted(self, drafter: Drafter, works: list[RowWork]) -> list[RowWork]:
        """The works, with drafts of the rows that decode."""
        left = self._tokens - sum(work.new for work in works)
        rows, most = list[Row](), list[int]()
        for work in works:
            row = work.row
            # the last token of the answer is the model's own
            limit = min(drafter.most, row.left - 1, self._context - len(row.tokens), left)
            limit = min(limit, self._store.allowed(row, work.new + limit) - work.new)
            if row.decoding and limit > 0:
                rows.append(row)
                most.append(limit)
                left -= limit
        if not rows:
            return works
        began = time.perf_counter()
        drafts = dict(zip((row.number for row in rows), drafter.propose(rows, most), strict=True))
        seconds, spent = (time.perf_counter() - began) / len(rows), drafter.spent()
        for row, charge in zip(rows, divided(spent, [1] * len(rows)), strict=True):
            row.spend("draft", seconds)
            row.charge += charge
            row.drafting += charge
        made = list[RowWork]()
        for work in works:
            draft = drafts.get(work.row.number, Draft())
            if draft.tokens and self._extended(work.row, work.row.held + work.new + len(draft.tokens)):
                work = replace(work, draft=draft)
            made.append(work)
        return made

    def _extended(self, row: Row, tokens: int) -> bool:
        """Whether there is room for so many tokens of a row, without taking another's. It has it then."""
        try:
            self._store.extend(row, tokens)
        except OutOfBlocks:
            return False
        return True
