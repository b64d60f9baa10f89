"""What a draft model has read of the rows that it drafts for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModel
from shoestring.decode.blocks import OutOfBlocks
from shoestring.decode.row import Row
from shoestring.decode.store import BLOCK, PagedStore
from shoestring.decode.work import Read, RowWork
from shoestring.errors import UsageError

ROOM = 1 << 15
"""Tokens that are kept of all rows, where nothing is said."""
LAST = 32
"""Tokens that are read together with the first look for a draft; what a row lacks beyond them is read before, in pieces."""


@dataclass(eq=False)
class Followed:
    """A row, as the draft model has read it.

    own: the draft model's row: the same tokens, and after them those of the latest draft that it read.
    final: how many of them are the text's for good.
    skipped: tokens of the text that it does not see, where it sees a window.
    """

    own: Row
    final: int = 0
    skipped: int = 0


class DraftState:
    """Follows rows with a draft model: each has a row of the same text in a store of the draft model's own.

    model: the draft model, whose layers keep keys and values. target: the model that writes.
    room: tokens to keep, of all rows; 0: the target's context, or 2^15 where that is more. tokens: places of a pass, at most.
    window: of a text, the draft model sees the first `anchors` tokens, and of the rest at least so many of the last, at most twice
        as many; 0: all.
    Raises: UsageError where the vocabularies differ, and for a model that keeps something else.
    """

    def __init__(
        self,
        model: LanguageModel,
        target: LanguageModel,
        room: int = 0,
        tokens: int = 512,
        block: int = BLOCK,
        window: int = 0,
        anchors: int = 0,
    ) -> None:
        theirs, ours = target.about.vocabulary, model.about.vocabulary
        if theirs != ours:
            raise UsageError(
                f"the draft model knows {ours} tokens, and the model {theirs}: a draft model needs the same vocabulary"
            )
        self.model, self.tokens, self.window, self.anchors = model, tokens, window, anchors
        self.store = PagedStore(model, -(-(room or max(ROOM, target.about.context)) // block), block)
        self._followed: dict[int, Followed] = {}
        """By the number of the row; those that were asked for least lately first."""
        self._charge = NOTHING

    def ready(self, rows: Sequence[Row], most: Mapping[int, int]) -> dict[int, Row]:
        """The draft model's own row of each, by its number. All but the last few of its tokens are read, at least one is not, and
        what was drafted in vain is forgotten. A row that has no room is left out.

        most: tokens that will be drafted, by the row's number.
        """
        found: dict[int, Row] = {}
        asked = {row.number for row in rows}
        waves = list(self._waves(rows))
        for wave in waves:
            for row in wave:
                followed = self._follow(row)
                if self._roomy(followed.own, len(followed.own.tokens) + most[row.number], asked):
                    found[row.number] = followed.own
                else:
                    self.drop(row)
            # what others will share is read now; else the last few tokens can wait for the first look
            left = 1 if wave is not waves[-1] else LAST
            self._catch_up([found[row.number] for row in wave if row.number in found], left)
        return found

    def read(self, works: Sequence[RowWork]) -> list[Read | None]:
        """What the draft model makes of more tokens of its own rows. Drafted tokens of a work (`RowWork.draft`) are not kept.
        None: there was no room for it."""
        found: dict[int, Read] = {}
        able = [work for work in works if self._extended(work.row, work.row.held + work.new)]
        for part in self._parts(able):
            with torch.inference_mode():
                reads, cost = self.store.read(self.model, part)
            places = sum(work.new for work in part)
            self._charge += Charge(flops=cost.flops, moved=cost.moved, read=places, calls=1)
            for work, read in zip(part, reads, strict=True):
                row, first = work.row, work.row.held
                row.held += len(work.tokens)
                if row.held <= self._followed[row.number].final:
                    self.store.keep(row, first, range(len(work.tokens)))
                found[row.number] = read
        return [found.get(work.row.number) for work in works]

    def drop(self, row: Row) -> None:
        """Forget a row."""
        followed = self._followed.pop(row.number, None)
        if followed is not None:
            self.store.drop(followed.own)

    def spent(self) -> Charge:
        """What it took since this was last asked."""
        charge, self._charge = self._charge, NOTHING
        return charge

    def _waves(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows in the order in which to read them: of a request that is new, one row first, which the others then share."""
        first, later, seen = list[Row](), list[Row](), {followed.own.ticket for followed in self._followed.values()}
        for row in rows:
            if row.number in self._followed or row.ticket not in seen:
                first.append(row)
            else:
                later.append(row)
            seen.add(row.ticket)
        yield first
        if later:
            yield later

    def _follow(self, row: Row) -> Followed:
        """The row as it was followed, or from now on, with the tokens that it has now."""
        followed = self._followed.pop(row.number, None)
        if followed is None:
            followed = self._joined(row)
        self._followed[row.number] = followed  # the latest
        own, tokens = followed.own, self._seen(followed, row)
        same = min(followed.final, len(tokens) - 1)
        most = min(own.held, len(tokens) - 1)
        while same < most and own.tokens[same] == tokens[same]:
            same += 1
        del own.tokens[same:]
        own.tokens.extend(tokens[same:])
        if own.held > same:
            own.held = same
            self.store.keep(own, same, ())
        followed.final = len(tokens)
        if row.request.sampling.changes_logits:
            own.answered = row.answered.copy()
        own.constraint = row.constraint and row.constraint.copy()
        return followed

    def _seen(self, followed: Followed, row: Row) -> list[int]:
        """The tokens of a row that the draft model sees."""
        length = len(row.tokens)
        if not self.window:
            return row.tokens
        if length - followed.skipped > self.anchors + 2 * self.window:
            # what it read of the window stands at other places now
            followed.skipped, followed.final = length - self.anchors - self.window, self.anchors
        return row.tokens[: self.anchors] + row.tokens[self.anchors + followed.skipped :]

    def length(self, row: Row) -> int:
        """Tokens of a row that the draft model is about to see."""
        followed, length = self._followed.get(row.number), len(row.tokens)
        skipped = 0 if followed is None else followed.skipped
        if self.window and length - skipped > self.anchors + 2 * self.window:
            return self.anchors + self.window
        return length - skipped

    def skipped(self, own: Row) -> int:
        """Tokens of the text that its own row lacks."""
        return self._followed[own.number].skipped

    def _joined(self, row: Row) -> Followed:
        """A row that is new. Where another answer to the same request is followed, it begins with what that has read."""
        followed = Followed(Row(row.number, row.ticket, row.request, row.sample, [], row.arrived))
        own = followed.own
        own.running = True
        for other in self._followed.values():
            if other.own.ticket == row.ticket:
                self.store.fork(other.own, own)
                own.tokens, own.held = list(other.own.tokens), other.own.held
                followed.skipped = other.skipped
                return followed
        own.tokens = list(self._seen(followed, row))
        own.held = followed.final = self.store.admit(own)
        return followed

    def _catch_up(self, rows: Iterable[Row], left: int) -> None:
        """Read what these rows lack, but for the last `left` tokens, in pieces."""
        behind = [row for row in rows if row.unread > left]
        while behind:
            works = []
            for row in behind:
                size = min(row.unread - left, self.tokens)
                works.append(RowWork(row, row.tokens[row.held : row.held + size], outputs=False))
            read = self.read(works)
            behind = [row for row, one in zip(behind, read, strict=True) if one is not None and row.unread > left]

    def _parts(self, works: Sequence[RowWork]) -> Iterator[list[RowWork]]:
        """The works of one pass after the other."""
        part, places = list[RowWork](), 0
        for work in works:
            if part and places + work.new > self.tokens:
                yield part
                part, places = [], 0
            part.append(work)
            places += work.new
        if part:
            yield part

    def _roomy(self, own: Row, tokens: int, asked: set[int]) -> bool:
        """Whether there is room for so many tokens of a row; rows that are not asked for are forgotten for it."""
        while not self._extended(own, tokens):
            idle = next((followed for number, followed in self._followed.items() if number not in asked), None)
            if idle is None:
                return False
            self.drop(idle.own)
        return True

    def _extended(self, own: Row, tokens: int) -> bool:
        try:
            self.store.extend(own, tokens)
        except OutOfBlocks:
            return False
        return True
