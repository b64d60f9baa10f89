"""Many answers at once: rows of different lengths are read in one pass, again and again.

A step is: the scheduler picks rows -> the drafter proposes tokens -> one pass -> accepted drafts and a choice a row -> what was
refused is forgotten -> events.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.adapter import NamedAdapters
from shoestring.contract.model import LanguageModel, require_causal
from shoestring.decode.acceptance import Acceptance, Question
from shoestring.decode.acceptances.exact import Exact
from shoestring.decode.cache_budget import CacheConfig, store_within
from shoestring.decode.choosing import changed_logits, next_token
from shoestring.decode.depth import RowDepth
from shoestring.decode.drafter import Drafter
from shoestring.decode.mixture import LogitMixture
from shoestring.decode.pass_cost import divide_pass, divided
from shoestring.decode.pass_plan import PassPlan
from shoestring.decode.pays import Pays
from shoestring.decode.request import Answer, Event, Request, Stop, Written
from shoestring.decode.row import Draft, Row
from shoestring.decode.row_queue import RowQueue
from shoestring.decode.sampling import log_probability
from shoestring.decode.scheduler import Passed, Scheduler
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
        self.queue = RowQueue(self.store, drafter)
        """The answers that it works on."""
        self._plan = PassPlan(
            self.queue, self.store, self.scheduler, rows=rows, tokens=tokens, context=model.about.context,
            drafter=drafter, depth=depth, pays=pays,
        )  # fmt: skip
        self._last: Passed | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is not at its end, or an end was not told yet."""
        return bool(self.queue.rows) or not self.queue.told

    @property
    def waiting(self) -> int:
        """Answers that have no place yet."""
        return sum(not row.running for row in self.queue.rows)

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
        row = self.queue.asked(request)
        if self.store.needed(row) > self.store.capacity:
            raise UsageError(f"the prompt has {size} tokens, and this engine has room for {self.store.capacity}")
        return self.queue.add(row)

    def fork(self, number: int, count: int) -> list[int]:
        """More answers that go on from where the one answer of a request is. Returns their samples' numbers.

        Raises: UsageError where the request has ended, or has several answers.
        """
        own = self.queue.of(number)
        if len(own) != 1 or not own[0].running:
            raise UsageError(f"request {number} has no single answer that is being written")
        first = self.queue.next_sample(number)
        made = [self.queue.forked(own[0], sample) for sample in range(first, first + count)]
        for row in made:
            self.queue.tell(row, [Written(token) for token in row.tokens[len(row.request.prompt) :]])
        return [row.sample for row in made]

    def cancel(self, number: int, sample: int | None = None) -> None:
        """End an answer, or all of a request, at once. Nothing happens where there is none."""
        for row in [row for row in self.queue.of(number) if sample in (None, row.sample)]:
            self.queue.tell(row, (), Stop.CANCELLED)

    def step(self) -> list[Event]:
        """Read once, and say what it brought."""
        for row in list(self.queue.rows):
            if time.monotonic() >= row.deadline:
                self.queue.tell(row, (), Stop.DEADLINE)
        started, written = time.perf_counter(), self.written
        works, measured = self._plan.next(self._last)
        if works:
            decoding = sum(work.row.decoding for work in works)
            tokens, attended = sum(work.new for work in works), sum(work.new * work.row.held for work in works)
            with torch.inference_mode():
                for layers, part in self._by_depth(works).items():
                    began = time.perf_counter()
                    depth = None if self.depth is None else self.depth.through(layers, part)
                    found, cost = self.store.read(self.model, part, depth, self.adapters)
                    self.passes += 1
                    self.computed += sum(work.new for work in part)
                    divide_pass(part, cost, time.perf_counter() - began, self.adapters)
                    for work, read, near in zip(part, found, self._found(part, found), strict=True):
                        self._take_in(work, read, near)
            written = self.written - written
            self._last = Passed(decoding, tokens, attended, written, time.perf_counter() - started)
            if self.pays is not None and measured:
                note = self.pays.end(written)
                self.notes += [] if note is None else [note]
        else:
            self._last = None
            if self.queue.rows and self.queue.told and not any(row.running for row in self.queue.rows):
                self.queue.tell(self.queue.rows[0], (), Stop.ROOM)  # nothing else takes the room that it lacks
        return self.queue.events()

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

    def _by_depth(self, works: list[RowWork]) -> dict[frozenset[int] | None, list[RowWork]]:
        """The works of each pass, by the layers that it goes through."""
        if self.depth is None:
            return {None: works}
        found: dict[frozenset[int] | None, list[RowWork]] = {}
        for work in works:
            found.setdefault(self.depth.layers(work.row, work.row.held), []).append(work)
        return found

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
        self.queue.tell(row, written, stop)

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
        others = [self.queue.forked(row, sample) for sample in range(1, row.parts + 1)]
        row.parts = 0
        for each in (row, *others):
            written = list[Written]()
            each.hidden = read.hidden[0]
            logits = self._logits(each, read, 0, found)
            stop = self._write(each, next_token(each, changed_logits(each, logits)), logits, written)
            self.queue.tell(each, written, stop)

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
