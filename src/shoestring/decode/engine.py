"""Many answers at once: rows of different lengths are read in one pass, again and again.

A step is: the scheduler picks rows -> the drafter proposes tokens -> one pass -> accepted drafts and a choice a row -> what was
refused is forgotten -> events.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from shoestring.budget.charge import FIELDS, Charge
from shoestring.contract.adapter import NamedAdapters
from shoestring.contract.cost import Cost
from shoestring.contract.model import LanguageModel, require_causal
from shoestring.decode.acceptance import Acceptance, Question
from shoestring.decode.acceptances.exact import Exact
from shoestring.decode.blocks import OutOfBlocks
from shoestring.decode.cache_budget import CacheConfig, store_within
from shoestring.decode.choosing import changed_logits, next_token
from shoestring.decode.depth import RowDepth, alike
from shoestring.decode.drafter import Drafter
from shoestring.decode.mixture import LogitMixture
from shoestring.decode.pays import Pays
from shoestring.decode.request import Answer, AnswerSpent, Event, Request, Stop, Written
from shoestring.decode.row import Draft, Row
from shoestring.decode.sampling import log_probability
from shoestring.decode.scheduler import Passed, Room, Scheduler
from shoestring.decode.schedulers.first_come import FirstCome
from shoestring.decode.store import Store
from shoestring.decode.work import Read, RowWork
from shoestring.errors import UsageError, did_you_mean

ROWS, TOKENS = 32, 512
"""Rows that have a place at a time, and tokens of a pass, where nothing is said."""


class Engine:
    """Answers requests with one model.

    model: any. What it computes of a row may differ in the last bits by what is read beside it; what is chosen of equal logits
        does not, as every draw belongs to a request and a place of its text.
    store: where what was read is kept. None: room for `room` tokens, in blocks where the model's layers keep keys and values.
    rows: that have a place at a time, at most.
    tokens: places of a pass, at most.
    scheduler, drafter, acceptance: None: first come, first served; no drafts; drafts change nothing.
    depth: which layers the tokens of an answer go through; None: all. Rows that go through others are read in passes of their own.
    mixture: changes the logits that tokens are chosen of; None: they are the model's.
    pays: measures whether drafts save time, and does without them where they do not. None: drafts are always made.
    room: tokens that rows have, all together. None: the context for each row, up to 2^15 in all.
    cache: how much of them is kept, and how; None: all, as it is. A `store` that is given has settings of its own.
    adapters: of the model, by name: requests may name one. Rows of different ones share a pass, and no beginnings of texts.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        store: Store | None = None,
        rows: int = ROWS,
        tokens: int = TOKENS,
        scheduler: Scheduler | None = None,
        drafter: Drafter | None = None,
        acceptance: Acceptance | None = None,
        depth: RowDepth | None = None,
        mixture: LogitMixture | None = None,
        pays: Pays | None = None,
        room: int | None = None,
        cache: CacheConfig | None = None,
        adapters: NamedAdapters | None = None,
    ) -> None:
        require_causal(model, "decoding token by token")
        room = min(rows * model.about.context, max(1 << 15, model.about.context)) if room is None else room
        self.model, self.rows, self.tokens = model, rows, tokens
        self.store = store or store_within(model, cache or CacheConfig(), rows=rows, room=room)
        self.store.expect(drafts=drafter is not None, depth=depth is not None)
        self.scheduler: Scheduler = scheduler or FirstCome()
        self.drafter = drafter
        self.acceptance: Acceptance = acceptance or Exact()
        self.pays, self.depth, self.mixture, self.adapters = pays, depth, mixture, adapters
        if depth is not None and drafter is not None:
            raise UsageError("drafts are checked by all layers at once: give a drafter or a depth, not both")
        if pays is not None and not self.acceptance.exact:
            raise UsageError("drafts that may change the text must not depend on the clock: leave pays out")
        self.notes: list[str] = []
        """A line each for what a user should know of how it went."""
        self.passes = 0
        """How many there were."""
        self.computed = 0
        """Places that all of them had."""
        self.written = 0
        """Tokens of all answers."""
        self.drafted = self.accepted = 0
        """Tokens that were drafted and checked, and those of them that stayed."""
        self._rows: list[Row] = []
        self._samples: dict[int, int] = {}
        """Of each request that has not ended, how many answers it has had."""
        self._tickets = 0
        self._numbers = 0
        self._ended: list[Event] = []
        self._last: Passed | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is not at its end, or an end was not told yet."""
        return bool(self._rows or self._ended)

    @property
    def waiting(self) -> int:
        """Answers that have no place yet."""
        return sum(not row.running for row in self._rows)

    def submit(self, request: Request) -> int:
        """Take in a request; it waits for its turn. Returns its number.

        Raises: UsageError where the prompt is longer than the context, or can never have room, or there is no such adapter.
        """
        size, context = len(request.prompt), self.model.about.context
        known = () if self.adapters is None else self.adapters.names
        if request.adapter is not None and request.adapter not in known:
            raise UsageError(f"no adapter is named '{request.adapter}': {did_you_mean(request.adapter, known)}")
        if size > context:
            raise UsageError(f"the prompt has {size} tokens, and the model's context is {context}")
        row = Row(self._number(), self._tickets + 1, request, 0, list(request.prompt), time.monotonic())
        if self.store.needed(row) > self.store.capacity:
            raise UsageError(f"the prompt has {size} tokens, and this engine has room for {self.store.capacity}")
        self._tickets += 1
        row.parts, row.constraint = request.samples - 1, request.constraint and request.constraint.copy()
        place = next(
            (at for at, other in enumerate(self._rows) if other.request.priority < request.priority), len(self._rows)
        )
        self._rows.insert(place, row)
        self._samples[self._tickets] = request.samples
        return self._tickets

    def fork(self, number: int, count: int) -> list[int]:
        """More answers that go on from where the one answer of a request is. Returns their samples' numbers.

        Raises: UsageError where the request has ended, or has several answers.
        """
        own = [row for row in self._rows if row.ticket == number]
        if len(own) != 1 or not own[0].running:
            raise UsageError(f"request {number} has no single answer that is being written")
        first = self._samples[number]
        made = [self._forked(own[0], sample) for sample in range(first, first + count)]
        for row in made:
            tokens = row.tokens[len(row.request.prompt) :]
            self._ended.append(Event(number, row.sample, tuple(Written(token) for token in tokens)))
        return [row.sample for row in made]

    def cancel(self, number: int, sample: int | None = None) -> None:
        """End an answer, or all of a request, at once. Nothing happens where there is none."""
        for row in [r for r in self._rows if r.ticket == number and sample in (None, r.sample)]:
            self._end(row, Stop.CANCELLED, ())

    def step(self) -> list[Event]:
        """Read once, and say what it brought."""
        for row in list(self._rows):
            if time.monotonic() >= row.deadline:
                self._end(row, Stop.DEADLINE, ())
        started, written = time.perf_counter(), self.written
        works, drafting = self._planned()
        if works:
            decoding = sum(work.row.decoding for work in works)
            tokens, attended = sum(work.new for work in works), sum(work.new * work.row.held for work in works)
            with torch.inference_mode():
                for layers, part in self._by_depth(works).items():
                    began = time.perf_counter()
                    depth = None if self.depth is None else self.depth.through(layers, part)
                    found, cost = self.store.read(self.model, part, depth, self.adapters)
                    self._account(part, cost, time.perf_counter() - began)
                    for work, read, near in zip(part, found, self._found(part, found), strict=True):
                        self._take_in(work, read, near)
            written = self.written - written
            self._last = Passed(decoding, tokens, attended, written, time.perf_counter() - started)
            if self.pays is not None and drafting:
                note = self.pays.end(written)
                self.notes += [] if note is None else [note]
        else:
            self._last = None
            if self._rows and not self._ended and not any(row.running for row in self._rows):
                self._end(self._rows[0], Stop.ROOM, ())  # nothing else takes the room that it lacks
        events, self._ended = self._ended, []
        return events

    def run(self, requests: Iterable[Request] = ()) -> Iterator[Answer]:
        """Answer these requests, and those that were submitted; each answer comes when it is at its end."""
        for request in requests:
            self.submit(request)
        written: dict[tuple[int, int], list[Written]] = {}
        while self.busy:
            for event in self.step():
                key = event.number, event.sample
                written.setdefault(key, []).extend(event.written)
                if event.stop is not None and event.spent is not None:
                    tokens = written.pop(key)
                    told = tuple(one.log_probability for one in tokens if one.log_probability is not None)
                    yield Answer(*key, tuple(one.token for one in tokens), event.stop, event.spent, told)

    # ---- what to read

    def _planned(self) -> tuple[list[RowWork], bool]:
        """(what the next pass reads, whether `pays` measures it)."""
        if self.drafter is None:
            return self._works(0), False
        if self.pays is None:
            return self._drafted(self._works(self.drafter.most)), False
        decoding = [row for row in self._rows if row.decoding]
        # a pass that reads prompts says nothing of drafts
        measured = bool(decoding) and len(decoding) == len(self._rows)
        drafts = self.pays.begin(len(decoding)) if measured else self.pays.drafting(len(decoding))
        works = self._works(self.drafter.most if drafts else 0)
        return self._drafted(works) if drafts else works, measured

    def _works(self, drafts: int) -> list[RowWork]:
        """What the next pass reads, but for drafts; every row of it has its place and its room."""
        chosen = self.scheduler.plan(
            self._rows, Room(self.rows, self.tokens, self.store.free, drafts, self._last, self.store.needed)
        )
        works = list[RowWork]()
        for row, count in chosen:
            if row.stop is not None or not (row.running or self._admitted(row)):
                continue
            count = self.store.allowed(row, min(count, row.unread))
            if self.depth is not None:
                count = alike(self.depth, row, count)
                row.charge += self.depth.spent()
            if self._roomy(row, row.held + count, works):
                whole = count == row.unread
                works.append(RowWork(row, row.tokens[row.held : row.held + count], outputs=whole))
        return works

    def _admitted(self, row: Row) -> bool:
        row.held = self.store.admit(row)
        row.running = True
        row.charge += Charge(reused=max(0, row.held - row.deepest))
        row.deepest = max(row.deepest, row.held)
        return True

    def _roomy(self, row: Row, tokens: int, works: Sequence[RowWork]) -> bool:
        """Make room for so many tokens of a row; rows that came later lose theirs for it, and read all again when there is room."""
        while True:
            try:
                self.store.extend(row, tokens)
            except OutOfBlocks:
                chosen = {work.row.number for work in works}
                others = [other for other in self._rows if other.running and other.number not in chosen]
                if others == [row] and not works:
                    self._end(row, Stop.ROOM, ())
                    return False
                self._preempt(others[-1])
                if others[-1] is row:
                    return False
            else:
                return True

    def _preempt(self, row: Row) -> None:
        self.store.drop(row)
        row.running, row.held, row.hidden = False, 0, None

    def _drafted(self, works: list[RowWork]) -> list[RowWork]:
        """The works, with drafts of the rows that decode."""
        assert self.drafter is not None
        left = self.tokens - sum(work.new for work in works)
        rows, most = list[Row](), list[int]()
        for work in works:
            row = work.row
            # the last token of the answer is the model's own
            limit = min(self.drafter.most, row.left - 1, self.model.about.context - len(row.tokens), left)
            limit = min(limit, self.store.allowed(row, work.new + limit) - work.new)
            if row.decoding and limit > 0:
                rows.append(row)
                most.append(limit)
                left -= limit
        if not rows:
            return works
        began = time.perf_counter()
        drafts = dict(zip((row.number for row in rows), self.drafter.propose(rows, most), strict=True))
        seconds, spent = (time.perf_counter() - began) / len(rows), self.drafter.spent()
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
        """Whether there is room for so many tokens of a row, without taking another's."""
        try:
            self.store.extend(row, tokens)
        except OutOfBlocks:
            return False
        return True

    def _by_depth(self, works: list[RowWork]) -> dict[frozenset[int] | None, list[RowWork]]:
        """The works of each pass, by the layers that it goes through."""
        if self.depth is None:
            return {None: works}
        found: dict[frozenset[int] | None, list[RowWork]] = {}
        for work in works:
            found.setdefault(self.depth.layers(work.row, work.row.held), []).append(work)
        return found

    # ---- what was found

    def _account(self, works: Sequence[RowWork], cost: Cost, seconds: float) -> None:
        """Divide what a pass took among its rows, by their places."""
        places = [work.new for work in works]
        self.passes += 1
        self.computed += sum(places)
        shared = divided(Charge(flops=cost.flops, moved=cost.moved), places)
        for work, share in zip(works, shared, strict=True):
            row, end = work.row, work.row.held + len(work.tokens)
            again = max(0, min(end, row.deepest) - row.held)
            # what was written was counted when it was chosen
            read = max(0, min(end, len(row.request.prompt)) - max(row.held, row.deepest))
            row.charge += share + Charge(read=read, wasted=again, calls=1)
            row.deepest = max(row.deepest, end)
            row.spend("decode" if row.decoding else "prefill", seconds * work.new / sum(places))
        for name, own in ({} if self.adapters is None else self.adapters.spent()).items():
            mine = [work for work in works if work.row.request.adapter == name]
            added = divided(Charge(flops=own.flops, moved=own.moved), [work.new for work in mine])
            for work, share in zip(mine, added, strict=True):
                work.row.charge += share

    def _found(self, works: Sequence[RowWork], reads: Sequence[Read]) -> list[Sequence[Any]]:
        """What the mixture looks up at the places of each work; they pay for it by their places."""
        sizes = [work.wanted for work in works]
        if self.mixture is None or not sum(sizes):
            return [[None] * size for size in sizes]
        found = self.mixture.find(torch.cat([read.hidden for read in reads]))
        for work, charge in zip(works, divided(self.mixture.spent(), sizes), strict=True):
            work.row.charge += charge
        ends = list(accumulate(sizes))
        return [found[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def _logits(self, row: Row, read: Read, place: int, found: Sequence[Any]) -> Tensor:
        """[V], of the token that comes next in a row, after this place of what was read of it."""
        if self.mixture is None:
            return read.logits[place]
        mixed = self.mixture.mixed(row, read.logits[place], read.hidden[place], found[place])
        row.charge += self.mixture.spent()
        return mixed

    def _take_in(self, work: RowWork, read: Read, found: Sequence[Any]) -> None:
        """Accept drafts, choose the next token, and forget what was refused."""
        row, first, kept = work.row, work.row.held, list(range(len(work.tokens)))
        if not work.outputs or row.parts:
            row.held += len(kept)
            self.store.keep(row, first, kept)
            if work.outputs:
                self._part(row, read, found)
            return
        written, stop, place = list[Written](), None, -1
        while stop is None:
            logits = self._logits(row, read, place + 1, found)
            changed = changed_logits(row, logits)
            token = next_token(row, changed)
            child = self._accepted(work.draft, place, token, changed, read.hidden)
            if child is not None:
                row.changed += token != work.draft.tokens[child]
                token = work.draft.tokens[child]
            stop = self._write(row, token, logits, written)
            if child is None:
                break
            if stop is not Stop.END:
                kept.append(len(work.tokens) + child)
            place = child
        row.charge += Charge(wasted=work.new - len(kept))
        self.drafted += len(work.draft.tokens)
        self.accepted += len(kept) - len(work.tokens)
        row.held, row.deepest = first + len(kept), max(row.deepest, first + len(kept))
        row.hidden = read.hidden[place + 1]
        self.store.keep(row, first, kept)
        self._tell(row, written, stop)

    def _accepted(self, draft: Draft, place: int, chosen: int, logits: Tensor, hidden: Tensor) -> int | None:
        """The place of the drafted token that stays after the one at `place`; None: none does."""
        # of a tree's branches, the model's own choice before all others
        for child in sorted(draft.children(place), key=lambda child: draft.tokens[child] != chosen):
            question = Question(draft.tokens[child], chosen, logits, hidden[place + 1], hidden[child + 1])
            if self.acceptance.accepts(question):
                return child
        return None

    def _part(self, row: Row, read: Read, found: Sequence[Any]) -> None:
        """The prompt is read: each answer to it goes its own way."""
        others = [self._forked(row, sample) for sample in range(1, row.parts + 1)]
        row.parts = 0
        for each in (row, *others):
            written = list[Written]()
            each.hidden = read.hidden[0]
            logits = self._logits(each, read, 0, found)
            stop = self._write(each, next_token(each, changed_logits(each, logits)), logits, written)
            self._tell(each, written, stop)

    def _write(self, row: Row, token: int, logits: Tensor, written: list[Written]) -> Stop | None:
        """Put a token to the answer. Returns why it ends there; a token that ends it is not put."""
        if token in row.request.ends:
            return Stop.END
        top = row.request.log_probabilities
        written.append(Written(token, None if top is None else log_probability(logits, token, top)))
        row.tokens.append(token)
        row.times.append(time.monotonic())
        row.charge += Charge(written=1)
        self.written += 1
        row.answered[token] += 1
        if row.constraint is not None:
            row.constraint.take(token)
        if not row.left:
            return Stop.LENGTH
        if len(row.tokens) > self.model.about.context:
            return Stop.CONTEXT
        return Stop.FLOPS if row.charge.flops >= row.request.flops else None

    def _tell(self, row: Row, written: Sequence[Written], stop: Stop | None) -> None:
        if stop is None:
            self._ended.append(Event(row.ticket, row.sample, tuple(written)))
        else:
            self._end(row, stop, written)

    def _end(self, row: Row, stop: Stop, written: Sequence[Written]) -> None:
        """Take a row's place, and say so."""
        if row.running:
            self.store.drop(row)
        row.running, row.stop = False, stop
        self._rows.remove(row)
        if not any(other.ticket == row.ticket for other in self._rows):
            del self._samples[row.ticket]
        if self.drafter is not None:
            self.drafter.drop(row)
        if row.parts:  # it ended before its prompt was read
            for sample in range(1, row.parts + 1):
                self._ended.append(Event(row.ticket, sample, (), stop, AnswerSpent()))
        self._ended.append(Event(row.ticket, row.sample, tuple(written), stop, row.spent()))

    def _forked(self, row: Row, sample: int) -> Row:
        """Another answer that goes on from where this one is. It waits for a place where the store has none."""
        now = time.monotonic()
        other = Row(self._number(), row.ticket, row.request, sample, list(row.tokens), row.arrived)
        other.answered, other.constraint = row.answered.copy(), row.constraint and row.constraint.copy()
        other.held = other.deepest = row.held
        other.memory = row.memory
        other.seen = now
        try:
            self.store.fork(row, other)
            other.running = True
        except OutOfBlocks:
            other.held = 0
        self._rows.insert(self._rows.index(row) + 1, other)
        self._samples[row.ticket] = max(self._samples[row.ticket], sample + 1)
        return other

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


def divided(charge: Charge, shares: Sequence[int]) -> list[Charge]:
    """A charge in whole parts, in proportion to `shares`, that add up to it."""
    total, done, before, parts = sum(shares), 0, Charge(), list[Charge]()
    for share in shares:
        done += share
        upto = Charge(**{name: getattr(charge, name) * done // total for name in FIELDS})
        parts.append(upto + -before)
        before = upto
    return parts
