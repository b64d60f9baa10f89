"""DiLoCo: workers train by themselves and seldom average what they learnt."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.sync.codec import Codec
from shoestring.sync.codecs.floats import Float32
from shoestring.sync.exchange import STAGES, Average, Averaged, Delta, ExchangeTerms, average, drive
from shoestring.sync.feedback import ErrorFeedback, Residuals
from shoestring.sync.flight import Flight, Round
from shoestring.sync.fragments import Fragments
from shoestring.sync.inner import forget, prepare
from shoestring.sync.message import write_note
from shoestring.sync.outer import OuterSGD, outer_for
from shoestring.sync.rendezvous.settings_check import Settings, SettingsCheck, settings_to_compare
from shoestring.sync.saved import Resumable
from shoestring.sync.transport.base import Transport
from shoestring.sync.transport.local import LocalGroup

WHOLE = Fragments()


class DiLoCo(Resumable):
    """The outer loop around a model that an inner optimiser trains.

    Douillard et al. (2023), DiLoCo: Distributed Low-Communication Training of Language Models, arXiv:2311.08105;
    (2025), Streaming DiLoCo with overlapping communication, arXiv:2501.18512, Algorithm 2; Therien et al. (2025),
    MuLoCo: Muon is a Practical Inner Optimizer for DiLoCo, arXiv:2505.23725 (Muon inside; compressed, with error
    feedback). Worker m, fragment p, after inner step t (from 1) where (t - t_p) mod H = 0:

        Delta_m,p <- theta_p - theta_m,p                    theta_p: the global weights, the same for all workers
        tau inner steps later:  theta_p <- OuterOpt(theta_p, mean over m of C(Delta_m,p))
                                theta_m,p <- alpha theta_m,p + (1 - alpha) theta_p

    with tau = 0, theta_m,p <- theta_p; where error feedback is held in the weights, what a worker withheld is subtracted from
    theta_p in the last line (`ErrorFeedback`). One worker (K = 1) is the same: its own Delta, smoothed by the outer optimiser.

    inner: the optimiser of the inner steps, which the caller takes. What is measured on the first weights (`anchor`) it
    measures here; and where a worker was left out of a round, as its weights were not finite, it gets the global weights,
    and the inner state of those parameters is emptied. One whose state holds weights is refused. every: H. codec: of
    matrices; None: float32, as vectors always travel. average_codec: of the averages that go back, where those travel apart
    ('scatter'); None: as codec. feedback: None keeps no residuals. transport: the caller's to
    close; None: this worker is alone. outer: None chooses by `inner`, lr 0.7 with momentum 0.6 where it, or a part of it,
    is Muon or kin, else 0.9 (`outer_for`). fragments: which parameters go together, and when. overlap: tau, below H.
    mixing: alpha, 0.5 in the paper; 0 forgets the tau steps, 1 ignores the others. It has no say in a merge before
    which no inner step was taken. average: see `exchange`. roles: of parameters by name, to count bytes by; those not
    named are 'matrix' or 'vector'.

    All workers start from the same weights and take the same number of inner steps. Before the first exchange of a run
    they compare names, shapes and types of the parameters, the first weights, and what of the settings must be alike;
    workers that a loop alone in its transport is given later are that transport's to admit. Global weights, momentum and
    residuals are float32 whatever the model is, 4 bytes a parameter each. With overlap, an exchange (encode, wait,
    decode) is done by one thread of this object beside the inner steps, in the order in which exchanges were started;
    when it is merged, and so every number, does not depend on how long it took.

    Where the transport loses a worker, `step` and `synchronise` raise PeerLost; the round is abandoned, as one that was
    voted down is, and the loop may go on.

    Raises: UsageError for settings that do not go together or do not fit the model or the inner optimiser.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: torch.optim.Optimizer | None = None,
        *,
        every: int = 30,
        codec: Codec | None = None,
        feedback: ErrorFeedback | None = None,
        transport: Transport | None = None,
        outer: OuterSGD | None = None,
        fragments: Fragments = WHOLE,
        overlap: int = 0,
        mixing: float = 0.5,
        average: Average = "auto",
        average_codec: Codec | None = None,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"every = {every}: an exchange follows at least one inner step")
        if not 0 <= overlap < every:
            raise UsageError(f"overlap = {overlap} must be at least 0 and below every = {every}")
        if not 0 <= mixing <= 1:
            raise UsageError(f"mixing = {mixing} must be between 0 and 1")
        if average not in ("auto", "gather", "scatter"):
            raise UsageError(f"average must be auto, gather or scatter, not {average!r}")
        if average == "gather" and average_codec is not None:
            raise UsageError("average = gather sends no average back, so average_codec has nothing to pack")
        self.model, self.inner, self.every, self.overlap, self.mixing = model, inner, every, overlap, mixing
        self.codec, self.average_codec = Float32() if codec is None else codec, average_codec
        self.transport = LocalGroup(1).transports[0] if transport is None else transport
        self.alone, self.settings_check = self.transport.size == 1, SettingsCheck(self._settings)
        self.outer = outer_for(inner) if outer is None else outer
        self.average, self.roles = average, dict(roles or {})
        self.fragments = fragments.of(model)
        self.offsets = fragments.offsets(every)
        self.residuals = None if feedback is None else Residuals(feedback)
        self.parameters = {name: parameter for fragment in self.fragments for name, parameter in fragment}
        self.weights = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        prepare(inner)
        self.momenta: dict[str, Tensor] = {}
        self.steps, self.sequence, self.rounds = 0, 0, 0
        # the inner step up to which the global weights of each fragment hold this worker's work
        self.applied = [0] * len(self.fragments)
        self.flights: list[Flight] = []
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> "DiLoCo":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait=error is None)

    def close(self, wait: bool = True) -> None:
        """End the thread. wait: let exchanges under way come to their end; else those not yet begun are not begun."""
        if self._thread is not None:
            self._thread.shutdown(wait=wait, cancel_futures=not wait)
            self._thread = None

    def step(self, note: Mapping[str, Any] | None = None) -> list[Round]:
        """Call after every inner step: starts the exchanges that are due, merges those that are.

        note: for all other workers, at most 128 bytes as JSON, sent with an exchange started now. Raises: ValueError
        for a longer note; UsageError where the workers do not begin alike; ShoestringError; PeerLost.
        """
        return self._complete(self.begin(note))

    def synchronise(self, note: Mapping[str, Any] | None = None) -> list[Round]:
        """Complete what is under way, then exchange every fragment that has moved since: the end of a run.

        Local and global weights are the same after it, unless a round was voted down. Raises: as `step`.
        """
        ended = self._complete(list(self.flights)) + self._complete(self.begin_all(note))
        self.let_go()
        return ended

    @torch.no_grad()
    def let_go(self) -> None:
        """Drop what the weights hold of error feedback, of every fragment that has not moved since its last exchange."""
        if self.residuals is not None and self.residuals.in_weights:
            for fragment, step in zip(self.fragments, self.applied, strict=True):
                if step == self.steps:
                    self.residuals.forget(name for name, _ in fragment)
                    for name, parameter in fragment:
                        parameter.copy_(self.weights[name])

    def _complete(self, flights: list[Flight]) -> list[Round]:
        if self.overlap:
            self._launch()
        return [self._wait(flight) for flight in flights]

    def _launch(self) -> None:
        """Give the thread what it has not got yet."""
        for flight in self.flights:
            if flight.running is None:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="exchange")
                flight.running = self._thread.submit(drive, flight.exchange)

    def _wait(self, flight: Flight) -> Round:
        began = time.perf_counter()
        try:
            averaged = drive(flight.exchange) if flight.running is None else flight.running.result()
            averaged = self.settled(averaged)
        except BaseException:
            self.flights.remove(flight)
            raise
        return self.finish(flight, averaged, time.perf_counter() - began)

    def settled(self, averaged: Averaged) -> Averaged:
        """What is applied of an exchange that has ended: a worker of several processes has the last word here."""
        return averaged

    def begin(self, note: Mapping[str, Any] | None = None) -> list[Flight]:
        """The half of `step` that waits for nobody: count the inner step, form the pseudo-gradients that are due.

        Returns what is to be completed now, in order: each with its exchange driven to the end, and then `finish`.
        """
        write_note(note or {})
        self.steps += 1
        for fragment, offset in enumerate(self.offsets):
            if (self.steps - offset) % self.every == 0:
                self._start(fragment, note or {})
        return [flight for flight in self.flights if flight.step + self.overlap <= self.steps]

    def begin_all(self, note: Mapping[str, Any] | None = None) -> list[Flight]:
        """As `begin`, but without an inner step, and for every fragment that has moved since its last exchange."""
        write_note(note or {})
        moved = [fragment for fragment, step in enumerate(self.applied) if step != self.steps]
        return [self._start(fragment, note or {}) for fragment in moved]

    @torch.no_grad()
    def _start(self, fragment: int, note: Mapping[str, Any]) -> Flight:
        deltas = [
            Delta(name, self.roles.get(name), self.weights[name] - parameter.detach().float())
            for name, parameter in self.fragments[fragment]
        ]
        flight = self.flight(
            fragment=fragment,
            step=self.steps,
            sequence=self.sequence,
            generation=self.rounds,
            note=dict(note),
            deltas=deltas,
        )
        self.sequence += 1
        self.flights.append(flight)
        return flight

    def flight(self, **kept: Any) -> Flight:
        tag, note, generation = kept["sequence"] * STAGES, kept["note"], kept["generation"]
        absent = kept.get("absent", False)
        terms = ExchangeTerms(
            self.codec, self.transport, self.residuals, tag, note, generation, absent, average_codec=self.average_codec
        )
        exchange = average(self.average, kept["deltas"], terms)
        if not self.alone:
            exchange = self.settings_check.before(exchange, self.transport, first=kept["sequence"] == 0)
        return Flight(**kept, exchange=exchange)

    def _settings(self) -> Settings:
        """What all workers must begin with alike."""
        settings = {
            "every": self.every,
            "overlap": self.overlap,
            "average": self.average,
            "codec": _settings_of(self.codec),
            "average_codec": None if self.average_codec is None else _settings_of(self.average_codec),
            "outer": self.outer,
        }
        return settings_to_compare(settings, self.fragments, self.weights)

    @torch.no_grad()
    def finish(self, flight: Flight, averaged: Averaged, exposed: float = 0.0) -> Round:
        """Apply and merge an exchange that has ended. exposed: seconds that the training thread waited for it."""
        self.flights.remove(flight)
        if averaged.tensors is not None:
            self._apply(flight, averaged, averaged.tensors)
        return Round(
            fragment=flight.fragment,
            step=flight.step,
            committed=averaged.tensors is not None,
            participants=averaged.participants,
            dropped=averaged.dropped,
            damaged=averaged.damaged,
            notes=averaged.notes,
            sent=averaged.sent,
            received=averaged.received,
            exposed_seconds=exposed,
            hidden_seconds=max(0.0, averaged.seconds - exposed),
            sent_by_role=averaged.sent_by_role,
        )

    def _apply(self, flight: Flight, averaged: Averaged, tensors: list[Tensor]) -> None:
        gradients = {delta.name: tensor for delta, tensor in zip(flight.deltas, tensors, strict=True)}
        left_out = averaged.place[0] not in averaged.participants
        if self.residuals is not None:
            self.residuals.commit(averaged.residuals, averaged.place)
            if left_out and not flight.absent and self.residuals.in_weights:
                self.residuals.forget(gradients)  # lost with the weights
        self.outer.step(self.weights, self.momenta, gradients)
        self.rounds += 1
        self.applied[flight.fragment] = flight.step
        keep = self.mixing if self.steps > flight.step and not left_out else 0.0
        for name in gradients:
            weight, parameter = self.start(name), self.parameters[name]
            parameter.copy_(torch.lerp(weight, parameter.float(), keep) if keep else weight)
            if left_out and self.inner is not None:
                forget(self.inner, parameter)

    @contextmanager
    def global_weights(self) -> Iterator[None]:
        """Have the global weights in the model, to evaluate or save them; the local ones come back after the block."""
        local = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(local)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])


def _settings_of(codec: Codec) -> str:
    """A codec's name and options, for the workers to compare."""
    kept = getattr(codec, "__dict__", {}).items()
    plain = [f" {key}={value}" for key, value in kept if isinstance(value, bool | int | float | str)]
    return type(codec).__name__ + "".join(plain)
