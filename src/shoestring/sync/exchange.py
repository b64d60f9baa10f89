"""One exchange: the average over the workers of what they encoded, or nothing for all of them.

`gather_average` and `scatter_average` are generators: they yield a `Pending`, are sent its result, and return
`Averaged`. So the same code blocks, runs beside the inner steps, or drives many workers of one process in lock-step.

Both end in a vote: each worker says whether all that it got was whole, and unless all say so nobody has an average. A
message that came damaged is thus never used, by anyone. Should a vote itself be damaged on its way, workers may
disagree about whether the round counts; every first message therefore says how many rounds its sender has applied, and
an exchange between workers whose numbers differ is refused by all.
"""

import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.sync.codec import Codec
from shoestring.sync.codecs.pieces import compressed
from shoestring.sync.feedback import PART, Residuals
from shoestring.sync.message import BodyLayout, Holds, OpenedMessage, header_bytes, open_message, seal, write_note
from shoestring.sync.transport.base import Pending, Transport

Average = Literal["auto", "gather", "scatter"]
STAGES = 3
"""Tags that one exchange takes: `tag`, `tag + 1` and `tag + 2`."""


@dataclass(frozen=True)
class Delta:
    """A tensor to be averaged, float32 of any shape. role: under which its bytes are counted; None: by its shape."""

    name: str
    role: str | None
    values: Tensor

    @property
    def counted_as(self) -> str:
        return self.role or ("matrix" if self.values.ndim >= 2 else "vector")


@dataclass(frozen=True)
class Averaged:
    """What came of an exchange.

    tensors: the averages, in the order and the shapes of the deltas; None where it was voted down or nobody had any.
    notes: of every worker by rank, the same for all; None for each where it was voted down, as workers may then have
    got different ones. participants: the ranks whose deltas were averaged. dropped: those that left theirs out, as a
    value was not finite. damaged: those of which this worker got a message that was not whole. residuals: to be
    committed if the average is used. place: this worker's rank and the number of workers. sent, received: bytes at
    the transport. seconds: from the first stage to the end of the vote. sent_by_role: bytes of payloads sent;
    'control' is what else there was, without frames.
    """

    tensors: list[Tensor] | None
    notes: list[dict[str, Any] | None]
    participants: list[int]
    dropped: list[int]
    damaged: list[int]
    residuals: dict[str, Tensor]
    place: tuple[int, int]
    sent: int
    received: int
    seconds: float
    sent_by_role: Counter[str] = field(default_factory=Counter)

    def abandoned(self) -> "Averaged":
        """The same, had it been voted down: for a transport that has the last word on a round."""
        return replace(self, tensors=None, residuals={})


Exchange = Generator[Pending, list[Tensor | None], Averaged]


@dataclass(frozen=True)
class ExchangeTerms:
    """What both ways to average are given besides the deltas.

    residuals: None keeps none. tag: of the first stage. note: for every other worker, at most 128 bytes as JSON.
    generation: how many rounds this worker has applied. absent: this worker has nothing to add, and only takes part.
    average_codec: of the averages that a scattered exchange sends back; None: `codec`.
    """

    codec: Codec
    transport: Transport
    residuals: Residuals | None = None
    tag: int = 0
    note: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    absent: bool = False
    average_codec: Codec | None = None

    @property
    def codecs(self) -> tuple[Codec, Codec]:
        """Of the two stages."""
        return self.codec, self.average_codec or self.codec


def average(kind: Average, deltas: Sequence[Delta], terms: ExchangeTerms) -> Exchange:
    """The exchange of a kind; 'auto' gathers among one or two workers, as there are when it starts, and scatters among more,
    or where the averages have a codec of their own, which only a scattered exchange sends."""
    if not deltas:
        return (yield from nothing(terms))
    gather = kind == "gather" or (kind == "auto" and terms.transport.size <= 2 and terms.average_codec is None)
    return (yield from (gather_average if gather else scatter_average)(deltas, terms))


def nothing(terms: ExchangeTerms) -> Exchange:
    """The exchange of workers that have no tensor in it: no message travels, and nobody is named."""
    yield from ()
    return Averaged([], [], [], [], [], {}, (terms.transport.rank, terms.transport.size), 0, 0, 0.0)


def gather_average(deltas: Sequence[Delta], terms: ExchangeTerms) -> Exchange:
    """Every worker sends its whole payload to every other, and averages what all K decode to, in the order of ranks.

    One quantisation; (K - 1) q bytes sent a worker for a payload of q bytes. A worker that has a value which is not
    finite sends padding, and is left out of the average by all.

    Raises: ValueError for a note that is too long; ShoestringError where workers have applied different numbers of
    rounds; PeerLost.
    """
    work = _Work(deltas, terms)
    layout = BodyLayout(terms.codec, [values.shape for values in work.values])
    sending = work.encode([layout], work.own())
    message = work.message(layout, sending, 0, stage=0)
    opened = yield from work.swap([message] * work.size, [layout] * work.size, stage=0)
    return (yield from work.vote(work.mean(layout, opened), opened))


def scatter_average(deltas: Sequence[Delta], terms: ExchangeTerms) -> Exchange:
    """Each tensor is cut by rows into K near-equal parts; worker r averages the r-th parts and gives the result to all.

    Two quantisations, of the deltas and of their average, each with its residual; (K - 1) / K (q + q') bytes sent a worker,
    for payloads of q and q' bytes, the same where `ExchangeTerms` has one codec.
    No sum is quantised on its way, which would add an error at every hop of a ring. Therien et al. (2025), MuLoCo,
    arXiv:2505.23725, reduce so, all-to-all and then all-gather; the residual of the second quantisation is ours. Rows
    are encoded part by part, so a codec with a scale a tensor has a scale a part. For the rest see `gather_average`.
    """
    work = _Work(deltas, terms)
    layouts, returning = (
        [
            BodyLayout(codec, [_rows(values, part, work.size).shape for values in work.values])
            for part in range(work.size)
        ]
        for codec in terms.codecs
    )
    mine = layouts[work.rank]
    sending = work.encode(layouts, work.own())
    messages = [work.message(layout, sending, part, stage=0) for part, layout in enumerate(layouts)]
    opened = yield from work.swap(messages, [mine] * work.size, stage=0)
    means = work.mean(mine, opened)
    answering = None
    if means is not None:
        answering = work.encode([returning[work.rank]], work.compensated(means, PART), PART)
        work.whole &= answering is not None
    answer = work.message(returning[work.rank], answering, 0, stage=1)
    answers = yield from work.swap([answer] * work.size, returning, stage=1)
    return (yield from work.vote(work.join(returning, answers), opened))


def drive(exchange: Exchange) -> Averaged:
    """Run an exchange to its end, waiting wherever it waits. Raises: what the exchange raises."""
    try:
        pending = next(exchange)
        while True:
            pending = exchange.send(pending.result())
    except StopIteration as end:
        return end.value
    finally:
        exchange.close()


def _rows(values: Tensor, part: int, parts: int) -> Tensor:
    """The rows of the part-th of `parts` near-equal cuts along the first dimension; there may be none."""
    rows = values.shape[0]
    return values[rows * part // parts : rows * (part + 1) // parts]


def _finite(tensors: Sequence[Tensor]) -> bool:
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


@dataclass(frozen=True)
class _Outgoing:
    """A message, and its bytes by role."""

    tensor: Tensor
    roles: Counter[str]


class _Work:
    """What the stages of one exchange share. whole: whether all that this worker has got so far was."""

    def __init__(self, deltas: Sequence[Delta], terms: ExchangeTerms) -> None:
        self.deltas, self.terms = deltas, terms
        self.note = write_note(terms.note)
        traffic = terms.transport.traffic
        self.rank, self.size = terms.transport.rank, terms.transport.size
        self.began, self.sent, self.received = time.perf_counter(), traffic.sent, traffic.received
        self.whole = True
        self.damaged: set[int] = set()
        self.staged: dict[str, Tensor] = {}
        self.roles: Counter[str] = Counter()
        # a scalar is a vector of one row
        self.values = [delta.values.reshape(delta.values.shape or (1,)) for delta in deltas]
        self.device = self.values[0].device
        # the same at all workers, which a look at the parts alone would not be: some may have no rows of any matrix
        shapes = [values.shape for values in self.values]
        self.sized = all(BodyLayout(codec, shapes).fixed for codec in terms.codecs)

    def own(self) -> list[Tensor] | None:
        """What this worker adds to the average; None where it is left out."""
        return None if self.terms.absent else self.compensated(self.values)

    def compensated(self, tensors: list[Tensor], ending: str = "") -> list[Tensor] | None:
        """The tensors with the residuals kept under their names and `ending`; None where a value is not finite."""
        residuals = self.terms.residuals
        if residuals is not None:
            tensors = [
                residuals.compensate(delta.name + ending, values, (self.rank, self.size))
                if compressed(values.shape)
                else values
                for delta, values in zip(self.deltas, tensors, strict=True)
            ]
        return tensors if _finite(tensors) else None

    def encode(
        self, layouts: Sequence[BodyLayout], tensors: list[Tensor] | None, ending: str = ""
    ) -> list[tuple[Tensor, list[int]]] | None:
        """(body, sizes of its payloads) of each part of the tensors; the new residuals are staged."""
        if tensors is None:
            return None
        packed = [
            layout.pack([_rows(values, part, len(layouts)) for values in tensors])
            for part, layout in enumerate(layouts)
        ]
        residuals = self.terms.residuals
        if residuals is not None and not (ending and residuals.in_weights):
            decoded = [layout.unpack(body, self.device) for layout, (body, _) in zip(layouts, packed, strict=True)]
            for delta, values, *pieces in zip(self.deltas, tensors, *decoded, strict=True):
                if compressed(values.shape):
                    self.staged[delta.name + ending] = values - torch.cat(pieces)
        return packed

    def message(
        self, layout: BodyLayout, packed: list[tuple[Tensor, list[int]]] | None, part: int, stage: int
    ) -> _Outgoing:
        """The message with a part's body; where there is none, padded to its size. The first stage has the note."""
        holds, body, sizes = Holds.NOTHING, None, [0] * len(self.deltas)
        if packed is not None:
            holds, (body, sizes) = Holds.TENSORS, packed[part]
        elif not self.whole:
            holds = Holds.BROKEN
        elif self.terms.absent and stage == 0:
            holds = Holds.ABSENT
        note = b"" if stage else self.note
        message = seal(holds, self.terms.generation, note, body, layout.nbytes if layout.fixed else 0)
        roles = Counter({"control": message.numel() - sum(sizes)})
        for delta, size in zip(self.deltas, sizes, strict=True):
            roles[delta.counted_as] += size
        return _Outgoing(message, roles)

    def give(self, messages: Sequence[_Outgoing], sizes: list[int] | None, stage: int) -> Pending:
        """Start a stage, and count what leaves this worker by role."""
        for rank, message in enumerate(messages):
            if rank != self.rank:
                self.roles += message.roles
                self.terms.transport.traffic.sent_by_role.update(message.roles)
        return self.terms.transport.exchange([each.tensor for each in messages], sizes, tag=self.terms.tag + stage)

    def swap(
        self, messages: Sequence[_Outgoing], layouts: Sequence[BodyLayout], stage: int
    ) -> Generator[Pending, list[Tensor | None], list[OpenedMessage | None]]:
        """A stage: what each worker sent, opened; layouts: of what each sends. None where it is not whole."""
        sizes = None
        if self.sized:
            sizes = [header_bytes(stage == 0) + layout.nbytes for layout in layouts]
        opened: list[OpenedMessage | None] = []
        for rank, message in enumerate((yield self.give(messages, sizes, stage))):
            try:
                opened.append(None if message is None else open_message(message, stage == 0))
            except ValueError:
                opened.append(None)
            if opened[-1] is None:
                self.spoilt(rank)
        self._same_generation(opened)
        return opened

    def spoilt(self, rank: int) -> None:
        self.whole = False
        self.damaged.add(rank)

    def decoded(self, layout: BodyLayout, opened: OpenedMessage, rank: int) -> list[Tensor] | None:
        """The tensors of a worker's body; None where it is of no such tensors."""
        try:
            return layout.unpack(opened.body, self.device)
        except ValueError:
            self.spoilt(rank)
            return None

    def _same_generation(self, opened: Sequence[OpenedMessage | None]) -> None:
        for rank, other in enumerate(opened):
            if other is not None and other.generation != self.terms.generation % 2**32:
                raise ShoestringError(
                    f"worker {rank} has applied {other.generation} rounds and worker {self.rank} "
                    f"{self.terms.generation}: their global weights are not the same any more"
                )

    def mean(self, layout: BodyLayout, opened: Sequence[OpenedMessage | None]) -> list[Tensor] | None:
        """The mean of the bodies that hold tensors, summed in the order of ranks; None where there is none."""
        given = [(rank, each) for rank, each in enumerate(opened) if each is not None and each.holds is Holds.TENSORS]
        total: list[Tensor] = []
        for rank, each in given:
            tensors = self.decoded(layout, each, rank) if self.whole else None
            if tensors is None:
                return None
            if total:
                torch._foreach_add_(total, tensors)
            else:  # cloned: a codec may decode to a view of the message, which is not ours to add to
                total = [tensor.clone() for tensor in tensors]
        if not total:
            return None
        torch._foreach_div_(total, len(given))
        self.whole = _finite(total)
        return total if self.whole else None

    def join(self, layouts: Sequence[BodyLayout], answers: Sequence[OpenedMessage | None]) -> list[Tensor] | None:
        """The averages put together from the parts of all workers."""
        holds = {each.holds for each in answers if each is not None}
        self.whole &= holds in ({Holds.TENSORS}, {Holds.NOTHING})
        if not self.whole or holds == {Holds.NOTHING}:
            return None
        parts = []
        for rank, (layout, each) in enumerate(zip(layouts, answers, strict=True)):
            tensors = None if each is None else self.decoded(layout, each, rank)
            if tensors is None:
                return None
            parts.append(tensors)
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    def vote(self, tensors: list[Tensor] | None, opened: Sequence[OpenedMessage | None]) -> Exchange:
        """The last stage: whether all have all, and what follows from it."""
        ballot = _Outgoing(torch.tensor([self.whole], dtype=torch.uint8), Counter({"control": 1}))
        votes = yield self.give([ballot] * self.size, [1] * self.size, STAGES - 1)
        agreed = all(vote is not None and vote.tolist() == [1] for vote in votes)
        held = [None if each is None else each.holds for each in opened]
        traffic = self.terms.transport.traffic
        shaped = None
        if agreed and tensors is not None:
            shaped = [mean.reshape(delta.values.shape) for mean, delta in zip(tensors, self.deltas, strict=True)]
        return Averaged(
            tensors=shaped,
            notes=[each.note if agreed and each is not None else None for each in opened],
            participants=[rank for rank, each in enumerate(held) if each is Holds.TENSORS],
            dropped=[rank for rank, each in enumerate(held) if each is Holds.NOTHING],
            damaged=sorted(self.damaged),
            residuals=self.staged if shaped is not None else {},
            place=(self.rank, self.size),
            sent=traffic.sent - self.sent,
            received=traffic.received - self.received,
            seconds=time.perf_counter() - self.began,
            sent_by_role=self.roles,
        )
