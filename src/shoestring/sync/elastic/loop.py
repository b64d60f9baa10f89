"""DiLoCo among workers that die, freeze, join late and come back: the members of a round are the workers that are there."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.elastic.fault_tolerant import FaultTolerantTransport
from shoestring.sync.elastic.healing import State
from shoestring.sync.elastic.membership import Membership
from shoestring.sync.elastic.tally import Tally, Work
from shoestring.sync.exchange import Averaged, Delta, drive
from shoestring.sync.transport.base import PeerLost

ATTEMPTS = 50
"""Attempts at a round that may be abandoned in a row before this worker gives up."""


INNER = "inner."
"""The prefix of the inner optimiser's tensors in a state that is sent to another worker."""

CLOCK_SLACK = 1.0
"""Seconds: a worker that is so far behind sets its clock to the latest one. Members do not send their clocks at quite the same
moment. Following smaller differences, round after round, would make the run's clock fast."""


NOBODY_FINITE = "no pseudo-gradient was finite"
"""Why a round is abandoned in which some workers had a pseudo-gradient, and each had a value that was not finite."""


class RunOver(ShoestringError):
    """The run has ended; there is nothing to take part in any more."""


@dataclass(frozen=True)
class RoundAttempt:
    """How one attempt at a round ended.

    round: how many had been committed before it.
    ids: names of its members, by rank.
    rank: this worker.
    healed: whether this worker took over the state of another.
    fresh: the ranks of all that did.
    committed: whether it is applied, by all of them.
    contributed: the ranks whose pseudo-gradients were averaged.
    dropped: the ranks whose pseudo-gradients were left out, as a value was not finite.
    damaged: the ranks from which this worker got a message that was not whole.
    added: tokens whose work came into the global weights.
    steps: inner steps of the period that it ends; 0 where it was not committed.
    notes: of each rank.
    why: it was abandoned; '' where it was committed.
    waited: seconds until its members were known.
    healing: seconds that the transfer of the state took.
    seconds: of the whole attempt.
    sent, received: bytes, those of an exchange that failed among them.
    sent_by_role: bytes of payloads by the role of their tensors, of an exchange that did not fail.
    """

    round: int
    ids: tuple[str, ...]
    rank: int
    healed: bool
    fresh: tuple[int, ...]
    committed: bool
    contributed: tuple[int, ...]
    dropped: tuple[int, ...]
    damaged: tuple[int, ...]
    added: int
    steps: int
    notes: tuple[Mapping[str, Any] | None, ...]
    why: str
    waited: float
    healing: float
    seconds: float
    sent: int
    received: int
    sent_by_role: Mapping[str, int]


class SharedInnerState(Protocol):
    """The inner optimiser of a worker, as far as the run changes its state."""

    def export_state(self) -> State:
        """Its state, for a worker whose own does not fit the run."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what `export_state` gave. Raises: ShoestringError where it does not fit."""
        ...

    def reset(self) -> None:
        """Begin anew: the local work was lost, and its moments with it."""
        ...


class ElasticLoop:
    """Drives the outer loop of one worker over a `FaultTolerantTransport`.

    Call `step` after every inner step, and `run_round` when a round is due. Call `run_round` also once before the first inner
    step: where the run begins, where it goes on from checkpoints, and where this worker joins late. A worker with nothing to
    add takes part all the same, and goes on from the run's state.

    A round is opened, exchanges, and ends with one outcome for all; only then is it applied. Opening it may replace this
    worker's state. What it did since the last committed round is then lost. It goes on with the inner moments of the worker
    that sent the state, as empty ones would make its next steps differ. The average leaves it out, as one without work.

    Where a member is lost, or a message came damaged, the round is abandoned. Global weights, momentum and residuals stay as
    they were, local work stays in the local weights, and those that are left try again at once. So between two committed
    rounds all members have taken the same number of inner steps.

    A worker whose pseudo-gradient is not finite is left out of the average. It loses its work and goes on from the global
    weights with an empty inner optimiser. Where nobody's is finite there is no round to take weights from: such workers end.

    Residuals of error feedback are each worker's own. They are kept in its checkpoint (`save`). Those of parts hold as long as
    its rank and the number of members do. A worker that takes over the state of another begins without any.

    The average is uniform over those that contribute. Douillard et al. (2023), DiLoCo, arXiv:2311.08105, section 3.3, let the
    number of workers vary in the same way: all that are there are averaged, and a new one starts from the global weights.

    outer: whole model, without overlap. Its transport is replaced by `connect`.
    identity: this worker's name in the run, the same whenever it comes back.
    sequences: that a worker takes in an inner step.
    inner: see `SharedInnerState`.
    over: whether the run has ended; asked whenever a round is open.
    record: called with each attempt at a round.
    since: the monotonic clock when the run's own clock started, for its first worker.

    Raises: UsageError for an outer loop with fragments or overlap.
    """

    def __init__(
        self,
        outer: DiLoCo,
        identity: str,
        *,
        sequences: int,
        inner: SharedInnerState,
        over: Callable[[], bool] = lambda: False,
        record: Callable[[RoundAttempt], None] = lambda attempt: None,
        since: float | None = None,
    ) -> None:
        if outer.overlap or len(outer.fragments) > 1:
            raise UsageError(
                f"workers that come and go exchange the whole model at once: fragments = {len(outer.fragments)}, "
                f"overlap = {outer.overlap} need workers that stay"
            )
        self.outer, self.identity, self.sequences = outer, identity, sequences
        self.inner, self.over, self.record = inner, over, record
        self.tally = Tally()
        self.rank = 0
        self.work = Work()
        self.unreported = 0
        self.round, self.lineage = 0, ""
        self._alive_since = time.monotonic() if since is None else since
        self._reported = self._alive_since, 0.0
        self._transport: FaultTolerantTransport | None = None

    @property
    def transport(self) -> FaultTolerantTransport:
        if self._transport is None:
            raise ShoestringError("the worker is not connected to its run yet")
        return self._transport

    def connect(self, link: Callable[..., FaultTolerantTransport]) -> None:
        """Make the transport, which the caller closes. link: called with save, load, step, lineage and limit."""
        # the longest message that a codec might make of the weights: twice their float32
        limit = 8 * sum(weight.numel() for weight in self.outer.weights.values()) + 2**20
        self._transport = link(
            save=self.offer, load=self.load, step=self.round, lineage=self.lineage or None, limit=limit
        )
        self.outer.transport = self._transport

    @property
    def period(self) -> int:
        """Inner steps since the last committed round."""
        return self.outer.steps - self.tally.begun

    @property
    def seconds(self) -> float:
        """The run's clock as this worker reads it: each round sets it for all."""
        return self.tally.seconds + time.monotonic() - self._alive_since

    def step(self, tokens: int, flops: int) -> None:
        """Count an inner step. tokens, flops: of this worker in it."""
        self.outer.steps += 1
        self.work = self.work.plus(tokens, flops)

    def run_round(self, note: Mapping[str, Any] | None = None) -> RoundAttempt:
        """Hold a round: try until one is committed.

        note: for all other workers, of some 40 bytes as JSON.

        Raises: RunOver; ShoestringError where no round can be opened or none is committed, where the state does not fit, or
        where this worker's pseudo-gradient is not finite and nobody else has one to go on with.
        """
        for _ in range(ATTEMPTS):
            attempt = self._attempt(note or {})
            self.record(attempt)
            if attempt.committed:
                return attempt
            if attempt.why == NOBODY_FINITE and attempt.rank in attempt.dropped:
                # another attempt would end alike; workers that have just joined go on without this one
                raise ShoestringError("this worker's pseudo-gradient is not finite, and no other worker has one")
        raise ShoestringError(f"{ATTEMPTS} rounds in a row were abandoned, the last as {attempt.why}")

    def _attempt(self, note: Mapping[str, Any]) -> RoundAttempt:
        began = time.perf_counter()
        member = self.transport.open_round()
        if self.over():
            self.transport.close_round(False)
            raise RunOver("the run is over")
        traffic = self.transport.traffic
        sent, received = traffic.sent, traffic.received
        averaged, why, committed = self._exchange(note)
        sent, received = traffic.sent - sent, traffic.received - received
        self.unreported += sent
        begun = self.tally.begun
        added = _added(averaged) if averaged is not None and committed else {}
        if committed:
            self._commit(member, averaged, added)
        return RoundAttempt(
            round=member.step,
            ids=member.ids,
            rank=member.rank,
            healed=member.healed,
            fresh=member.fresh,
            committed=committed,
            contributed=tuple(sorted(added)),
            dropped=tuple(averaged.dropped) if averaged is not None else (),
            damaged=tuple(averaged.damaged) if averaged is not None else (),
            added=sum(work.tokens for work in added.values()),
            steps=self.tally.begun - begun,
            notes=tuple(averaged.notes) if averaged is not None else (),
            why=why,
            waited=member.waited,
            healing=member.healing,
            seconds=time.perf_counter() - began,
            sent=sent,
            received=received,
            sent_by_role=dict(averaged.sent_by_role) if averaged is not None else {},
        )

    def _exchange(self, note: Mapping[str, Any]) -> tuple[Averaged | None, str, bool]:
        """(what was exchanged, why it is abandoned, whether it is committed). A worker without work is absent."""
        outer = self.outer
        self._reported = time.monotonic(), self.seconds
        report = {
            "n": outer.steps,
            "t": self.work.tokens,
            "f": self.work.flops,
            "s": round(self._reported[1], 3),
            "b": self.unreported,
        }
        deltas = [
            Delta(name, outer.roles.get(name), outer.weights[name] - parameter.detach().float())
            for name, parameter in outer.fragments[0]
        ]
        flight = outer.flight(
            fragment=0,
            step=outer.steps,
            sequence=self.transport.step,  # the same for all members, whatever each has tried before
            generation=outer.rounds,
            note={**report, **note},
            deltas=deltas,
            absent=self.work == Work(),
        )
        outer.flights.append(flight)
        try:
            averaged = drive(flight.exchange)
        except PeerLost as error:
            outer.flights.remove(flight)
            self.transport.close_round(False)
            return None, str(error), False
        except ShoestringError:
            outer.flights.remove(flight)
            self.transport.close_round(False)
            raise
        whole = averaged.tensors is not None or _nobody_had_any(averaged)
        committed = self.transport.close_round(whole)
        outer.finish(flight, averaged if committed else averaged.abandoned())
        return averaged, "" if committed else _why_abandoned(averaged), committed

    def _commit(self, member: Membership, averaged: Averaged | None, added: Mapping[int, Work]) -> None:
        assert averaged is not None
        notes = [note for note in averaged.notes if note is not None]
        # a member that came back with the very state of the last round has not taken the steps that the others have
        step, seconds = max(note["n"] for note in notes), max(note["s"] for note in notes)
        sent = sum(note["b"] for note in notes)
        self.tally.commit(step=step, count=self.sequences, ids=member.ids, added=added, seconds=seconds, sent=sent)
        self.unreported -= notes[member.rank]["b"]
        self.outer.steps, self.outer.applied = step, [step]
        reported, own = self._reported
        behind = seconds - own
        # from the moment of the report: the exchange took time too
        self._alive_since = reported + (behind if behind < CLOCK_SLACK else 0.0)
        self.rank, self.round, self.lineage = member.rank, self.transport.step, self.transport.lineage
        lost, self.work = self.work != Work() and member.rank not in added, Work()
        if lost:  # it was not finite
            self.inner.reset()

    def save(self, *, residuals: bool = False) -> State:
        """What all workers hold alike, as the last committed round left it. residuals: this worker's own too."""
        tensors, values = self.outer.shared_state(residuals=residuals)
        return tensors, {"outer": values, "tally": self.tally.plain()}

    def offer(self) -> State:
        """What another worker needs to go on: the shared state, and the state of this worker's inner optimiser."""
        (tensors, values), (moments, record) = self.save(), self.inner.export_state()
        return {**tensors, **{INNER + name: tensor for name, tensor in moments.items()}}, {**values, "inner": record}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a state that `offer` gave; what this worker did by itself is lost.

        Raises: ShoestringError where it does not fit.
        """
        if not all(isinstance(values.get(key), dict) for key in ("outer", "tally", "inner")):
            raise ShoestringError(
                "the state that came is damaged: it has no outer loop, no counts, or no inner optimiser"
            )
        tally = Tally.of(values["tally"])
        shared = {name: tensor for name, tensor in tensors.items() if not name.startswith(INNER)}
        moments = {name.removeprefix(INNER): tensor for name, tensor in tensors.items() if name.startswith(INNER)}
        self.inner.load_state(moments, values["inner"])
        self.outer.join(shared, values["outer"])
        self.tally, self.work = tally, Work()
        self._alive_since = time.monotonic()


def _why_abandoned(averaged: Averaged) -> str:
    if averaged.damaged:
        return "a message was damaged"
    if averaged.dropped and not averaged.participants:
        return NOBODY_FINITE
    return "other workers did not get it whole, or not in time"


def _nobody_had_any(averaged: Averaged) -> bool:
    """Whether all messages came whole and nobody had anything to add, as where all have just begun."""
    return not averaged.participants and not averaged.dropped and None not in averaged.notes


def _added(averaged: Averaged) -> dict[int, Work]:
    found = {}
    for rank in averaged.participants if averaged.tensors is not None else ():
        note = averaged.notes[rank]
        assert note is not None
        found[rank] = Work(note["t"], note["f"])
    return found
