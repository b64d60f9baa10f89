"""Several workers on one run: each trains a model of its own, and now and then they exchange what they learnt."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import SYNC_HIDDEN, Ledger, Totals
from shoestring.contract.batch import Batch
from shoestring.contract.objective import At
from shoestring.errors import ShoestringError
from shoestring.optim.state import flatten_state
from shoestring.parallel.stored_tensors import under
from shoestring.sync.diloco import DiLoCo, Round
from shoestring.sync.lockstep import Lockstep
from shoestring.sync.rendezvous.all_gather import all_gather
from shoestring.sync.transport.base import Transport
from shoestring.train.base import put_weights
from shoestring.train.noise_scale import NoiseScale
from shoestring.train.step import Stepper, StepResult, together
from shoestring.train.vote import Vote, VoteCount

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_VOTE = 5
"""Steps after which the workers of a run first vote on its end, where no exchange comes before: the first may come too late."""


@dataclass
class Exchanges:
    """What the exchanges of this process came to.

    sent, received: bytes, of all its workers.
    sent_by_role: bytes of payloads sent, by the role of their tensors; 'control' is what else there was, frames apart.
    exposed, hidden: seconds that training waited for them, and that they went on beside it.
    abandoned: rounds that were voted down.
    dropped: pseudo-gradients that were not finite.
    """

    rounds: int = 0
    sent: int = 0
    received: int = 0
    sent_by_role: dict[str, int] = field(default_factory=dict)
    exposed: float = 0.0
    hidden: float = 0.0
    abandoned: int = 0
    dropped: int = 0

    def add_bytes(self, sent: int, received: int, sent_by_role: Mapping[str, int]) -> None:
        """Those of one exchange of one worker."""
        self.sent += sent
        self.received += received
        for role, count in sent_by_role.items():
            self.sent_by_role[role] = self.sent_by_role.get(role, 0) + count


class Team:
    """The `Worker` and `Company` of a run of several workers: those of this process, and what joins them to the others.

    steppers, outers: of each of its workers.
    transport: to the other processes, None where this one has all workers.
    gap: steps from one exchange to the next (`VoteCount`).

    On the ledger, 'sync_exposed' is all that a step waited for an exchange, packing and unpacking included.
    """

    def __init__(
        self,
        steppers: Sequence[Stepper],
        outers: Sequence[DiLoCo],
        ledger: Ledger,
        *,
        transport: Transport | None = None,
        gap: int = 1,
    ) -> None:
        self.steppers, self.outers, self.ledger, self.transport = list(steppers), list(outers), ledger, transport
        self.vote_count = None if transport is None else VoteCount(gap)
        self.lockstep = Lockstep(self.outers) if transport is None else None
        self.model = steppers[0].model
        self.noise_scale: NoiseScale | None = None
        self.exchanges = Exchanges()
        self.vote = Vote()
        self.steps = 0
        # while no exchange is under way, as one beside the steps may meet the others' at any moment
        self.first_vote = min(FIRST_VOTE, min(offset or outers[0].every for offset in outers[0].offsets) - 1)

    @property
    def leads(self) -> bool:
        return self.transport is None or self.transport.rank == 0

    @property
    def processes(self) -> int:
        return self.outers[0].transport.size // len(self.outers)

    def at(self, step: int) -> int:
        return step

    def spent(self, own: Totals) -> Totals:
        return own

    def gradients(self, batch: Batch, at: At) -> StepResult:
        """Each worker's gradients of its part of the batch; the loss is the mean over their targets."""
        parts = batch.split(batch.rows // len(self.steppers))
        under_way = [stepper.accumulate(part, at) for stepper, part in zip(self.steppers, parts, strict=True)]
        results = [each.read() for each in under_way]
        targets = sum(result.targets for result in results)
        return StepResult(
            sum(result.loss * result.targets for result in results) / max(targets, 1),
            max(result.gradient_norm for result in results),
            max(result.gradient_norm_1 for result in results),
            targets,
            together(*(result.spent for result in results)),
            {
                name: sum(result.figures[name] * result.targets for result in results) / max(targets, 1)
                for name in results[0].figures
            },
        )

    def apply(self, learning_rate_factor: float) -> None:
        """Every worker's inner step, then whatever exchanges are due."""
        for stepper in self.steppers:
            stepper.apply(learning_rate_factor)
        self.steps += 1
        with self.ledger.clock("sync_exposed"):
            note = self.vote.note()
            if self.lockstep is not None:
                self._take(self.lockstep.step([note] * len(self.outers)))
            else:
                if self.steps == self.first_vote and self.transport is not None:
                    self._count_votes(self.steps, all_gather(self.transport, note, number=FIRST_VOTE))
                self._take([self.outers[0].step(note)])

    def _take(self, rounds: Sequence[Sequence[Round]]) -> None:
        """Account for the rounds that ended.

        rounds: of each worker of this process, the same ones in the same order.
        """
        for worker, own in enumerate(rounds):
            for ended in own:
                self.exchanges.add_bytes(ended.sent, ended.received, ended.sent_by_role)
                self.ledger.charge(Charge(sent=ended.sent, received=ended.received))
                if worker == 0:
                    self._count(ended)

    def _count(self, ended: Round) -> None:
        self.exchanges.rounds += 1
        self.exchanges.exposed += ended.exposed_seconds
        self.exchanges.hidden += ended.hidden_seconds
        self.exchanges.abandoned += not ended.committed
        self.exchanges.dropped += len(ended.dropped)
        for rank in ended.dropped:
            log.warning(f"step {ended.step}: the pseudo-gradient of worker {rank} is not finite and was left out")
        self.ledger.overlap(SYNC_HIDDEN, ended.hidden_seconds)
        self._count_votes(ended.step, ended.notes)

    def _count_votes(self, step: int, notes: Sequence[Mapping[str, Any] | None]) -> None:
        if self.vote_count is not None:
            self.vote_count.count(step, notes)

    def decide(self, step: int, vote: Vote) -> Vote:
        if self.vote_count is None:
            return vote
        # the step that is about to be taken is counted when its note travels
        self.vote = Vote(vote.left - 1, vote.stop, vote.save)
        return self.vote_count.decide(step)

    def agree(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def figures(self) -> dict[str, float]:
        found = self.exchanges
        return {
            "workers": self.outers[0].transport.size,
            "processes": self.processes,
            "sent": found.sent,
            "received": found.received,
            "sync_exposed": round(found.exposed, 4),
            "sync_hidden": round(found.hidden, 4),
        }

    def summary(self, own: Mapping[str, Any]) -> dict[str, Any]:
        size = self.outers[0].transport.size
        return {"workers": size, "processes": self.processes, "exchanges": asdict(self.exchanges)}

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        with self.outers[0].global_weights():
            yield

    def conclude(self) -> None:
        """Exchange everything once more: from here on every model holds the global weights."""
        with self.ledger.clock("sync_exposed"):
            note = self.vote.note()
            if self.lockstep is not None:
                self._take(self.lockstep.synchronise([note] * len(self.outers)))
            else:
                self._take([self.outers[0].synchronise(note)])

    def finish(self) -> None:
        """The global weights are in the models since `conclude`."""

    def weights(self) -> dict[str, Tensor]:
        """The global weights: what the run has to show so far."""
        with self.outers[0].global_weights():
            return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def state(self) -> tuple[dict[str, Tensor], Any]:
        tensors: dict[str, Tensor] = {}
        values = []
        for worker, (stepper, outer) in enumerate(zip(self.steppers, self.outers, strict=True)):
            local = {name: tensor.detach() for name, tensor in stepper.model.named_parameters()}
            moments, record = flatten_state(stepper.optimizer)
            kept, numbers = outer.state_dict()
            tensors |= flattened(worker, local=local, inner=moments, outer=kept)
            values.append({"inner": record, "outer": numbers})
        return tensors, self.values(values)

    def values(self, workers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What a checkpoint holds as JSON values. workers: of each its part."""
        end = None if self.vote_count is None else self.vote_count.end
        return {"steps": self.steps, "end": end, "workers": list(workers)}

    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Any) -> None:
        """Raises: ShoestringError for a checkpoint of another number of workers in one process."""
        if len(values["workers"]) != len(self.steppers):
            raise ShoestringError(
                f"the checkpoint is of {len(values['workers'])} workers in one process, and {len(self.steppers)} are to go "
                "on: the run's transport was another"
            )
        self.steps = values["steps"]
        if self.vote_count is not None:
            self.vote_count.end = values["end"]
        for worker, (stepper, outer) in enumerate(zip(self.steppers, self.outers, strict=True)):
            local, inner, kept = (under(tensors, f"{worker}:{place}:") for place in ("local", "inner", "outer"))
            self.restore_local(stepper, weights, local, inner, values["workers"][worker]["inner"])
            outer.load_state_dict(kept, values["workers"][worker]["outer"])

    def restore_local(
        self,
        stepper: Stepper,
        weights: Mapping[str, Tensor],
        local: Mapping[str, Tensor],
        inner: Mapping[str, Tensor],
        record: Any,
    ) -> None:
        """Put back a worker's own weights and its inner optimiser's state. weights: of the model as the checkpoint has it."""
        put_weights(stepper.model, weights)
        with torch.no_grad():
            for name, parameter in stepper.model.named_parameters():
                parameter.copy_(local[name])
        stepper.take_optimizer(inner, record)


def flattened(worker: int, **places: Mapping[str, T]) -> dict[str, T]:
    """What a checkpoint keeps of a worker, by one name each. places: 'local', 'inner', 'outer'."""
    return {f"{worker}:{place}:{name}": one for place, part in places.items() for name, one in part.items()}
