"""The state of an outer loop as named tensors and JSON values, and exactly back: nothing is ever unpickled."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.sync.exchange import Delta
from shoestring.sync.feedback import PART, Residuals
from shoestring.sync.flight import Flight
from shoestring.sync.fragments import Named
from shoestring.sync.transport.base import Transport

FLIGHT = ("fragment", "step", "sequence", "generation", "note")
"""What is kept of an exchange under way besides its tensors."""


SHARED = ("schedule", "steps", "sequence", "rounds", "applied")


class Resumable:
    """A worker's part of the outer loop as far as it must be saved; `DiLoCo` moves it.

    weights, momenta: global, by name, float32; the same for all workers. steps: inner steps taken. sequence:
    exchanges started. rounds: of those, applied. applied: for each fragment, the inner step up to which the global
    weights hold this worker's work. flights: exchanges under way, oldest first.
    """

    transport: Transport
    every: int
    overlap: int
    roles: dict[str, str]
    fragments: list[list[Named]]
    parameters: dict[str, nn.Parameter]
    weights: dict[str, Tensor]
    momenta: dict[str, Tensor]
    residuals: Residuals | None
    steps: int
    sequence: int
    rounds: int
    applied: list[int]
    flights: list[Flight]

    def flight(self, **kept: Any) -> Flight:
        """The exchange that these fields of a `Flight` describe, not begun."""
        raise NotImplementedError

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON values). The model's own weights and the inner optimiser's state are not among them.

        Tensors: 'global.NAME', 'momentum.NAME', 'residual.NAME', 'residual.NAME@part', and 'flight.SEQUENCE.NAME' for
        the pseudo-gradients of exchanges under way, as they were formed; the residuals are those from before these
        exchanges. They are the live tensors: save or clone them before the next step.
        """
        tensors = {f"global.{name}": tensor for name, tensor in self.weights.items()}
        tensors |= {f"momentum.{name}": tensor for name, tensor in self.momenta.items()}
        if self.residuals is not None:
            tensors |= {f"residual.{name}": tensor for name, tensor in self.residuals.tensors.items()}
        for flight in self.flights:
            tensors |= {f"flight.{flight.sequence}.{delta.name}": delta.values for delta in flight.deltas}
        parts = None if self.residuals is None else self.residuals.place
        return tensors, {
            "schedule": self._schedule(),
            "place": [self.transport.rank, self.transport.size],
            "steps": self.steps,
            "sequence": self.sequence,
            "rounds": self.rounds,
            "applied": list(self.applied),
            "parts": None if parts is None else list(parts),
            "flights": [{key: getattr(flight, key) for key in FLIGHT} for flight in self.flights],
        }

    @torch.no_grad()
    def load_state_dict(
        self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, reshard: bool = False
    ) -> None:
        """Put back what `state_dict` gave; the tensors are copied. All workers load the state of one step.

        Exchanges that were under way are started again from the same pseudo-gradients, and give the same bits.

        reshard: take a state of another number of workers, another rank or another schedule too. Then the global
        weights, the momentum and the counts are taken; the worker's own residuals where the rank is the same; the
        residuals of parts are dropped, and so are exchanges under way, as the local weights still hold what they
        held. A worker that takes the state of another rank has no local weights: its model gets the global ones.

        Raises: ShoestringError, before anything is changed, where the state is damaged or of another model, or of
        another place or schedule and `reshard` was not asked for.
        """
        lost = {*SHARED, "place", "parts", "flights"} - values.keys()
        if lost:
            raise ShoestringError(f"the saved outer state is damaged: it has no {', '.join(sorted(lost))}")
        place, here = tuple(values["place"]), (self.transport.rank, self.transport.size)
        moved = place != here or values["schedule"] != self._schedule()
        if moved and not reshard:
            raise ShoestringError(self._difference(place, values["schedule"]))
        weights = self._named(tensors, "global.", self.weights)
        momenta = self._named(tensors, "momentum.")
        own = {} if place[0] != here[0] else self._named(tensors, "residual.")
        parts = None if moved or values["parts"] is None else tuple(values["parts"])
        residuals = {name: tensor for name, tensor in own.items() if not (moved and name.endswith(PART))}
        flights = [] if moved else [{**flight, "deltas": self._deltas(tensors, flight)} for flight in values["flights"]]

        self._take(weights, momenta, values)
        self.applied = [-1] * len(self.fragments) if moved else list(values["applied"])
        self.flights = [self.flight(**flight) for flight in flights]
        if self.residuals is not None:
            self.residuals.tensors, self.residuals.place = residuals, parts
        if place[0] != here[0]:
            self._restart()

    def shared_state(self, *, residuals: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON values) that all workers hold alike: what one that joins must be given (`join`).

        residuals: with this worker's own, which no other has: for its own checkpoint. Raises: ShoestringError where exchanges
        are under way, for who joins has no part in them.
        """
        if self.flights:
            raise ShoestringError("an exchange is under way: what workers share is to be had between two of them")
        tensors, values = self.state_dict()
        starts = ("global.", "momentum.", "residual.") if residuals else ("global.", "momentum.")
        taken = {key: tensor for key, tensor in tensors.items() if key.startswith(starts)}
        return taken, {key: values[key] for key in SHARED} | ({"parts": values["parts"]} if residuals else {})

    @torch.no_grad()
    def join(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on as a worker of a run whose `shared_state` this is, which is at the same point of its step.

        The model gets the global weights. Residuals are those of the state, if it has any, and those that weights hold are in
        the model's; else they are forgotten. Raises: ShoestringError, before anything is changed, where the state does not fit.
        """
        lost = set(SHARED) - values.keys()
        if lost:
            raise ShoestringError(f"the shared outer state is damaged: it has no {', '.join(sorted(lost))}")
        if values["schedule"] != self._schedule():
            raise ShoestringError(self._difference((self.transport.rank, self.transport.size), values["schedule"]))
        weights, momenta = self._named(tensors, "global.", self.weights), self._named(tensors, "momentum.")
        residuals, parts = self._named(tensors, "residual."), values.get("parts")
        self._take(weights, momenta, values)
        self.applied = list(values["applied"])
        self.flights = []
        if self.residuals is not None:
            self.residuals.tensors, self.residuals.place = residuals, None if parts is None else tuple(parts)
        self._restart()

    def _take(self, weights: dict[str, Tensor], momenta: dict[str, Tensor], values: Mapping[str, Any]) -> None:
        for name, weight in weights.items():
            self.weights[name].copy_(weight)
        self.momenta = momenta
        self.steps, self.sequence, self.rounds = values["steps"], values["sequence"], values["rounds"]

    def start(self, name: str) -> Tensor:
        """Where this worker's steps begin after an exchange: the global weights, less what its weights hold of feedback."""
        withheld = None if self.residuals is None else self.residuals.withheld(name)
        return self.weights[name] if withheld is None else self.weights[name] - withheld

    def _restart(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.start(name))

    def _schedule(self) -> dict[str, Any]:
        fragments = [[name for name, _ in fragment] for fragment in self.fragments]
        return {"every": self.every, "overlap": self.overlap, "fragments": fragments}

    def _difference(self, place: tuple[int, ...], schedule: Mapping[str, Any]) -> str:
        rank, size = self.transport.rank, self.transport.size
        if place != (rank, size):
            was, now = f"worker {place[0]} of {place[1]}", f"worker {rank} of {size}"
        else:
            key = next(key for key, value in self._schedule().items() if schedule.get(key) != value)
            was, now = f"another '{key}'", f"'{key}' = {self._schedule()[key]}"
            if key == "fragments":
                now = f"{len(self.fragments)} fragments"
        return (
            f"the saved outer state is of {was}, and this is {now}: a run goes on as it was, --model.base RUN begins a new one "
            "from its weights, and in a loop of your own load_state_dict(..., reshard=True) takes such a state over"
        )

    def _named(
        self, tensors: Mapping[str, Tensor], start: str, needed: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Copies of the tensors whose names begin so, by the rest. Raises: ShoestringError where they do not fit."""
        found = {}
        for key, tensor in tensors.items():
            if key.startswith(start):
                name = key.removeprefix(start)
                weight = self.weights.get(name.removesuffix(PART))
                fits = weight is not None and tensor.dtype == torch.float32
                if not fits or (tensor.shape != weight.shape and not name.endswith(PART)):  # type: ignore[union-attr]
                    raise ShoestringError(f"the saved outer state is of another model: it has {key} {[*tensor.shape]}")
                found[name] = tensor.to(weight.device, copy=True)  # type: ignore[union-attr]
        missing = sorted((needed or {}).keys() - found.keys())
        if missing:
            raise ShoestringError(f"the saved outer state is of another model: it has no {start}{missing[0]}")
        return found

    def _deltas(self, tensors: Mapping[str, Tensor], flight: Mapping[str, Any]) -> list[Delta]:
        names = {name: self.weights[name] for name, _ in self.fragments[flight["fragment"]]}
        values = self._named(tensors, f"flight.{flight['sequence']}.", names)
        return [Delta(name, self.roles.get(name), values[name]) for name in names]
