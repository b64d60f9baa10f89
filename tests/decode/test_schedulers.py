"""What each scheduler promises, played through without a model: passes take what a formula says."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy
import pytest
import torch

from shoestring.config import build
from shoestring.decode.request import Request
from shoestring.decode.row import Row
from shoestring.decode.scheduler import Passed, Room, RowReading, Scheduler
from shoestring.decode.schedulers.adaptive_chunks import AdaptiveChunks, nonnegative_least_squares
from shoestring.decode.schedulers.batch_advisor import BatchAdvisor, advise
from shoestring.decode.schedulers.e_batch import EBatch
from shoestring.decode.schedulers.earliest_deadline import EarliestDeadline
from shoestring.decode.schedulers.equal_lengths import EqualLengths
from shoestring.decode.schedulers.expert_groups import ExpertGroups
from shoestring.decode.schedulers.first_come import FirstCome
from shoestring.decode.schedulers.sequence_scheduling import SequenceScheduling
from shoestring.decode.supplied import needs
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer

Seconds = Callable[[int, int], float]
"""What a pass of so many tokens takes, that attend to so many."""


@dataclass
class Play:
    """An engine without a model: rows read and write as they are told to."""

    scheduler: Scheduler
    rows: int = 4
    tokens: int = 64
    free: int = 10_000
    seconds: Seconds = lambda tokens, attended: 1.0
    lengths: dict[int, int] = field(default_factory=dict)
    """Of the answers; what the request allows, where nothing is said."""
    waiting: list[Row] = field(default_factory=list)
    passes: list[list[RowReading]] = field(default_factory=list)
    took: list[Passed] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    numbers: int = 0

    def submit(self, prompt: int, answer: int, **more: float) -> Row:
        self.numbers += 1
        request = Request((1,) * prompt, max_new_tokens=answer, **more)  # type: ignore[arg-type]
        row = Row(self.numbers, self.numbers, request, 0, [1] * prompt, float(self.numbers))
        self.waiting.append(row)
        return row

    def step(self) -> list[RowReading]:
        room = Room(self.rows, self.tokens, self.free, 0, self.took[-1] if self.took else None)
        chosen = self.scheduler.plan(self.waiting, room)
        assert len({each.row.number for each in chosen}) == len(chosen)
        assert sum(each.tokens for each in chosen) <= self.tokens
        assert all(0 < each.tokens <= each.row.unread for each in chosen)
        attended, written = sum(each.tokens * each.row.held for each in chosen), 0
        decoding = sum(each.row.decoding for each in chosen)
        for row, count in chosen:
            self.free -= 0 if row.running else len(row.tokens)
            row.running, row.held = True, row.held + count
            if not row.unread:
                row.tokens.append(1)
                written += 1
                if row.written >= self.lengths.get(row.number, row.request.max_new_tokens):
                    self.waiting.remove(row)
                    self.free += len(row.request.prompt)
                    self.ended.append(row.number)
        assert sum(row.running for row in self.waiting) <= self.rows
        tokens = sum(each.tokens for each in chosen)
        self.passes.append(chosen)
        self.took.append(Passed(decoding, tokens, attended, written, self.seconds(tokens, attended)))
        return chosen

    def run(self, most: int = 5000) -> "Play":
        while self.waiting:
            assert self.step(), "rows are there, and nothing is read"
            assert len(self.passes) < most
        return self


def small_model() -> Transformer:
    torch.manual_seed(1)
    mixer = {"name": "moe", "experts": 8}
    sizes = {"layers": 2, "width": 16, "heads": 2, "vocabulary": 40, "context": 8, "channel_mixer": mixer}
    return Transformer(build(ModelConfig, sizes))


@pytest.mark.parametrize("name", [card.name for card in methods("decode", "scheduler")])
def test_all_are_answered_within_the_room(name: str) -> None:
    """Random arrivals; rows, tokens and room are kept at every pass, and nothing waits for ever."""
    (card,) = [card for card in methods("decode", "scheduler") if card.name == name]
    chance = random.Random(4)
    made = card.target(small_model()) if "target" in needs(card.target) else card.target()
    play = Play(made, free=400, seconds=lambda tokens, attended: 1 + tokens * 0.01 + attended * 1e-4)
    for _ in range(300):
        if chance.random() < 0.3:
            expected, seconds = chance.choice((None, 5, 70)), chance.choice((float("inf"), 10.0))
            play.submit(chance.randrange(1, 120), chance.randrange(1, 90), expected=expected, seconds=seconds)  # type: ignore[arg-type]
        if play.waiting:
            assert play.step()
            assert play.free >= 0
    play.run()
    assert len(play.ended) == play.numbers > 60


def order_of_starts(play: Play) -> list[int]:
    seen = list[int]()
    for chosen in play.passes:
        seen += [each.row.number for each in chosen if each.row.number not in seen]
    return seen


def test_the_earliest_deadline_goes_first_and_priorities_stand_above() -> None:
    play = Play(EarliestDeadline(), rows=1)
    play.submit(3, 2)
    play.submit(3, 2, seconds=50.0)
    play.submit(3, 2, seconds=20.0)
    play.submit(3, 2, seconds=49.0)  # it came two later, and is over after 53
    play.submit(3, 2, priority=1)
    play.run()
    assert order_of_starts(play) == [5, 3, 2, 4, 1]


def test_deadlines_that_can_be_met_in_any_order_are_met() -> None:
    """Each takes three passes; the k-th deadline leaves room for k of them. In the order of arrival most are missed."""
    chance, count = random.Random(1), 12
    limits = [3.0 * (number + 1) for number in range(count)]
    chance.shuffle(limits)

    def missed(scheduler: Scheduler) -> int:
        play = Play(scheduler, rows=1)
        for limit in limits:
            row = play.submit(3, 3, seconds=1.0)
            row.arrived = limit - 1.0  # its deadline, on a clock that begins at 0
        rows = {row.number: row.deadline for row in play.waiting}
        ends = dict[int, float]()
        while play.waiting:
            play.step()
            ends |= {number: float(len(play.passes)) for number in play.ended if number not in ends}
        return sum(ends[number] > limit for number, limit in rows.items())

    assert missed(EarliestDeadline()) == 0
    assert missed(FirstCome()) > 3


def test_chunks_keep_the_time_between_tokens_and_shrink_as_the_context_grows() -> None:
    def seconds(tokens: int, attended: int) -> float:
        return 0.005 + 2e-4 * tokens + 4e-7 * attended

    target = 0.05
    play = Play(AdaptiveChunks(seconds=target, least=4), tokens=4096, free=10**6, seconds=seconds)
    short = play.submit(5, 400)
    while not short.written:
        play.step()
    long = play.submit(3000, 1)
    chunks = list[int]()
    while long in play.waiting:
        chosen = play.step()
        chunks += [each.tokens for each in chosen if each.row is long]
        # the first passes teach what a pass takes
        assert play.took[-1].seconds < target * 1.01
    assert sum(chunks) == 3000
    assert chunks[:3] == [4] * 3
    steady = chunks[chunks.index(max(chunks)) : -1]
    assert steady == sorted(steady, reverse=True)
    assert steady[0] > 150 > steady[-1]
    assert min(each.seconds for each in play.took[-len(steady) : -1]) > target * 0.95
    # where nobody waits for a token, all of a prompt is read
    alone = Play(AdaptiveChunks(seconds=target), tokens=4096, free=10**6, seconds=seconds)
    alone.submit(3000, 1)
    assert alone.step()[0].tokens == 3000


def test_the_fit_is_the_best_that_is_nowhere_below_zero() -> None:
    from scipy.optimize import nnls

    generator = numpy.random.default_rng(0)
    for _ in range(20):
        features = generator.random((30, 3))
        values = features @ generator.normal(size=3) + 0.1 * generator.normal(size=30)
        assert numpy.allclose(nonnegative_least_squares(features, values), nnls(features, values)[0], atol=1e-8)


def test_rows_of_one_length_decode_together_and_none_waits_long() -> None:
    play = Play(EqualLengths(patience=3), rows=6, tokens=200)
    for prompt in (10, 10, 10, 14, 16, 16):
        play.submit(prompt, 30)
    play.step()
    lengths = {row.number: len(row.tokens) for row in play.waiting}
    starved = dict.fromkeys(lengths, 0)
    while play.waiting:
        before = {row.number: len(row.tokens) for row in play.waiting}
        chosen = play.step()
        assert len({before[each.row.number] for each in chosen}) == 1
        decoded = {each.row.number for each in chosen}
        starved = {number: 0 if number in decoded else starved[number] + 1 for number in before}
        # as many lengths as may be there take turns
        assert max(starved.values()) <= 3 + 3
    # those that were as long as others catch up, and join them
    assert max(len(chosen) for chosen in play.passes[1:]) > 3


def test_answers_of_similar_length_are_written_together() -> None:
    play = Play(SequenceScheduling(step=50, patience=1000), rows=3)
    for expected in (20, 200, 30, 210, 40, 190, 10, 45):
        play.submit(2, 256, expected=expected)
    play.lengths = dict(enumerate((20, 200, 30, 210, 40, 190, 10, 45), start=1))
    play.run()
    # the short ones first, as one of them came first; then the long ones
    assert order_of_starts(play) == [1, 3, 5, 7, 8, 2, 6, 4]
    fifo = Play(FirstCome(), rows=3, lengths=play.lengths)
    for _ in range(8):
        fifo.submit(2, 256)
    assert order_of_starts(fifo.run()) == list(range(1, 9))


def test_a_request_of_a_rare_length_waits_only_so_long() -> None:
    play = Play(SequenceScheduling(step=50, patience=30), rows=2)
    play.submit(2, 5)  # the two rows end at different passes, so that no batch is begun anew
    play.submit(2, 500)
    for _ in range(20):
        play.submit(2, 10)
    play.run()
    place = order_of_starts(play).index(2)
    assert 5 <= place <= 8


def test_an_ended_row_is_replaced_at_once_and_others_wait_for_the_quantum() -> None:
    scheduler = EBatch(passes=10, longest=10)
    play = Play(scheduler, rows=3, tokens=200)
    play.submit(4, 4)
    play.submit(4, 40)
    play.step()
    for _ in range(3):
        play.submit(4, 40)
    starts = {1: 0, 2: 0}
    while len(starts) < 4:
        for each in play.step():
            starts.setdefault(each.row.number, len(play.passes) - 1)
    # the first ended with the fourth pass; the third place is given when the quantum is over
    assert starts == {1: 0, 2: 0, 3: 4, 4: 10}


def test_a_quantum_grows_while_that_helps() -> None:
    scheduler = EBatch(passes=2, longest=16)
    play = Play(scheduler, rows=2, tokens=200, seconds=lambda tokens, attended: 1.0 if scheduler.passes > 4 else 2.0)
    for _ in range(40):
        play.submit(2, 20)
    sizes = list[int]()
    while play.waiting:
        play.step()
        sizes.append(scheduler.passes)
    assert max(sizes) == 16
    assert sum(size > 4 for size in sizes) > len(sizes) / 2


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda rows, _: 1.0, 16),  # memory-bound: rows cost nothing
        (lambda rows, _: max(1.0, rows / 4), 4),  # compute-bound from four on
        (lambda rows, _: float(rows), 1),
    ],
)
def test_the_advisor_stops_where_throughput_does(seconds: Seconds, expected: int) -> None:
    scheduler = BatchAdvisor(gain=0.1, window=4)
    play = Play(scheduler, rows=16, tokens=400, seconds=seconds)
    for _ in range(60):
        play.submit(1, 30)
    play.run()
    assert scheduler.settled
    assert scheduler.rows == expected


def test_the_advisor_keeps_a_target_between_tokens() -> None:
    scheduler = BatchAdvisor(seconds=1.5, window=4)
    play = Play(scheduler, rows=16, tokens=400, seconds=lambda rows, _: 1 + rows / 10)
    for _ in range(60):
        play.submit(1, 30)
    play.run()
    assert (scheduler.settled, scheduler.rows) == (True, 4)


def test_rows_of_like_experts_decode_together_and_none_waits_longer() -> None:
    model = small_model()
    scheduler = ExpertGroups(model, rows=2, patience=3)
    gates = [model.get_parameter(f"blocks.{layer}.channel_mixer.router.gate.weight") for layer in range(2)]
    for token in (3, 17):
        x = model.embedding.weight[token]
        x = x / x.square().mean().sqrt()
        best = {(layer, int(e)) for layer, gate in enumerate(gates) for e in (gate @ x).topk(2).indices}
        assert scheduler.experts_of(token) == best
    play = Play(scheduler, rows=6, tokens=64)
    tokens = [3, 17, 9, 3, 17, 9]
    rows = [play.submit(1, 12) for _ in tokens]
    for row, token in zip(rows, tokens, strict=True):
        row.tokens[-1] = token
    play.step()
    for row, token in zip(rows, tokens, strict=True):
        row.tokens[-1] = token
    group = [each.row for each in scheduler.plan(play.waiting, Room(6, 64, 100)) if each.row.decoding]
    assert [rows.index(row) for row in group] == [0, 3]  # the first, and the one with its token
    group = [each.row for each in scheduler.plan(play.waiting, Room(6, 64, 100)) if each.row.decoding]
    assert [rows.index(row) for row in group] == [1, 4]
    play.run()
    passes = [sorted(each.row.number for each in chosen if each.row.held > 1) for chosen in play.passes[1:]]
    for row in rows:
        at = [number for number, one in enumerate(passes) if row.number in one]
        assert max(b - a for a, b in pairwise(at)) <= 4
    with pytest.raises(UsageError, match="this one has none"):
        ExpertGroups(object())


def test_the_advice_is_the_best_rate_within_the_bounds() -> None:
    took = {1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 3.9, 32: 8.0}
    free = advise(took, context=100, least=0.0)
    assert (free.rows, free.tokens, free.rate, free.seconds) == (16, 1600, 16 / 3.9, 3.9)
    assert advise(took, context=100, seconds=2.0, least=0.0).rows == 8
    assert advise(took, context=100, least=0.6).rows == 4  # 8 / 2.0 is half of what 8 would write alone
    assert advise(took, context=100, seconds=0.5).rows == 1
