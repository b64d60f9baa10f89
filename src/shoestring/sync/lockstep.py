"""Many workers in one process, driven side by side: what each would do alone, for study and tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.exchange import Averaged, Exchange
from shoestring.sync.flight import Flight, Round

Notes = Sequence[Mapping[str, Any]] | None


class Lockstep:
    """The K replicas of a `LocalGroup`, in the order of their ranks: every one posts before any takes, stage by stage.

    Raises: UsageError where the replicas are not the workers of a group, all of them and in order.
    """

    def __init__(self, replicas: Sequence[DiLoCo]) -> None:
        ranks = [(replica.transport.rank, replica.transport.size) for replica in replicas]
        if ranks != [(rank, len(replicas)) for rank in range(len(replicas))]:
            raise UsageError(f"{len(replicas)} replicas need the ranks 0 to {len(replicas) - 1} in order, not {ranks}")
        self.replicas = list(replicas)

    def step(self, notes: Notes = None) -> list[list[Round]]:
        """`DiLoCo.step` of each replica, after each has taken an inner step: its rounds, by replica."""
        return self._complete([replica.begin(note) for replica, note in self._with(notes)])

    def synchronise(self, notes: Notes = None) -> list[list[Round]]:
        """`DiLoCo.synchronise` of each replica."""
        first = self._complete([list(replica.flights) for replica in self.replicas])
        last = self._complete([replica.begin_all(note) for replica, note in self._with(notes)])
        for replica in self.replicas:
            replica.let_go()
        return [before + after for before, after in zip(first, last, strict=True)]

    def _with(self, notes: Notes) -> list[tuple[DiLoCo, Mapping[str, Any]]]:
        return list(zip(self.replicas, notes if notes is not None else [{}] * len(self.replicas), strict=True))

    def _complete(self, flights: Sequence[list[Flight]]) -> list[list[Round]]:
        rounds: list[list[Round]] = [[] for _ in self.replicas]
        for abreast in zip(*flights, strict=True):
            try:
                averaged = drive_together([flight.exchange for flight in abreast])
            except BaseException:
                for replica, flight in zip(self.replicas, abreast, strict=True):
                    replica.flights.remove(flight)
                raise
            for replica, flight, result, done in zip(self.replicas, abreast, averaged, rounds, strict=True):
                done.append(replica.finish(flight, result, result.seconds))
        return rounds


def drive_together(exchanges: Sequence[Exchange]) -> list[Averaged]:
    """Run the exchanges of all workers of one process to their end. Raises: what an exchange raises."""
    ended: list[Averaged] = []
    try:
        under_way = [next(exchange) for exchange in exchanges]
        while not ended:
            results = [pending.result() for pending in under_way]
            under_way = []
            for exchange, result in zip(exchanges, results, strict=True):
                try:
                    under_way.append(exchange.send(result))
                except StopIteration as end:
                    ended.append(end.value)
    finally:
        for exchange in exchanges:
            exchange.close()
    if under_way:
        raise ShoestringError("some workers ended an exchange that others have not ended")
    return ended
