"""The counts of a run whose workers come and go: all of them hold the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from shoestring.errors import ShoestringError


@dataclass(frozen=True)
class Work:
    """What one worker has done by itself.

    tokens: trained on.
    flops: floating-point operations.
    """

    tokens: int = 0
    flops: int = 0

    def plus(self, tokens: int, flops: int) -> "Work":
        return Work(self.tokens + tokens, self.flops + flops)


@dataclass
class Tally:
    """The counts up to the last committed round. They follow from what all workers received, so all hold the same.

    begun: the inner step of the last committed round, at which the present period began.
    size: workers that the period's sequences are divided among.
    sequences: of the run's order, handed out up to there; some may have been lost with a worker.
    tokens: of all work that is in the global weights.
    flops: likewise.
    seconds: of the run's clock.
    credited: the work in the global weights by worker, those that have left among them.
    sent: bytes that workers sent, as reported with committed rounds. Those of a round are reported with the next one; those
    of a worker that died before are not.
    """

    begun: int = 0
    size: int = 1
    sequences: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    credited: dict[str, Work] = field(default_factory=dict)
    sent: int = 0

    def start_of(self, rank: int, step: int, count: int) -> int:
        """The first of the `count` sequences that worker `rank` takes in the inner step after `step`."""
        return self.sequences + ((step - self.begun) * self.size + rank) * count

    def commit(
        self, *, step: int, count: int, ids: Sequence[str], added: Mapping[int, Work], seconds: float, sent: int = 0
    ) -> None:
        """Count a committed round.

        step: inner steps taken before it.
        count: sequences that a worker takes in a step.
        ids: names of the members, by rank.
        added: the work of those whose pseudo-gradients were averaged, by rank.
        seconds: the latest clock of all.
        sent: bytes that all reported.
        """
        self.sequences += (step - self.begun) * self.size * count
        self.begun, self.size, self.seconds = step, len(ids), max(self.seconds, seconds)
        self.sent += sent
        for rank, work in sorted(added.items()):
            before = self.credited.get(ids[rank], Work())
            self.credited[ids[rank]] = before.plus(work.tokens, work.flops)
            self.tokens += work.tokens
            self.flops += work.flops

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"credited": {name: [work.tokens, work.flops] for name, work in sorted(self.credited.items())}}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Tally":
        """What `plain` gave. Raises: ShoestringError where it is something else."""
        try:
            credited = {str(name): Work(int(tokens), int(flops)) for name, (tokens, flops) in plain["credited"].items()}
            counts = {name: int(plain[name]) for name in ("begun", "size", "sequences", "tokens", "flops", "sent")}
            return cls(**counts, seconds=float(plain["seconds"]), credited=credited)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShoestringError(f"the counts of the run are damaged: {error!r}") from None
