"""One worker of a run whose workers come and go: its share of the data, its steps, and when the run ends."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from shoestring.budget.budget import Budget
from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL, Ledger, Totals
from shoestring.contract.batch import Batch
from shoestring.contract.objective import At
from shoestring.data.windows import BatchSource
from shoestring.optim.state import flatten_state, restore_state
from shoestring.parallel.stored_tensors import under
from shoestring.sync.elastic.loop import ElasticLoop, RoundAttempt
from shoestring.sync.elastic.tally import Tally, Work
from shoestring.train.noise_scale import NoiseScale
from shoestring.train.step import Stepper, StepResult
from shoestring.train.team import Exchanges
from shoestring.train.vote import Vote

log = logging.getLogger(__name__)

FIRST_PERIOD = 5
"""Inner steps before the first exchange of a run with a budget in seconds: until then nobody knows what a step takes."""


class ElasticBatches:
    """The sequences of a worker that takes `own` of them in every inner step: of the stretch that the members of a round
    take together in the next one, the part of its rank. Which these are follows from (sequences handed out before, rank,
    number of members) alone; `start` and `count`, which are of a run with a fixed number of workers, have no say."""

    def __init__(self, source: BatchSource, elastic: ElasticLoop) -> None:
        self.source, self.elastic = source, elastic

    def batch(self, start: int, count: int) -> Batch:
        elastic = self.elastic
        own = elastic.sequences
        return self.source.batch(elastic.tally.start_of(elastic.rank, elastic.outer.steps, own), own)


class ElasticTeam:
    """The `Worker` and `Company` of one worker among others that come and go.

    budget: of the whole run, which all spend together.
    every: inner steps from one exchange to the next.
    nominal: what an inner step of one worker takes, as planned.
    reserve: seconds to keep back for what follows the last step.

    On the ledger, tokens are those that are in the global weights or may still come there. Those of this worker that were
    lost are 'discarded': when it takes over the run's state, the run's own account of this worker says which they are.

    A budget in bytes is that of the exchanges of all workers together. The run ends before the round that would overrun it,
    as far as rounds take what the last one took: where workers have just come, it may be overrun by that round. Two rounds
    are held at least, for only the first tells what one takes.
    """

    def __init__(
        self,
        stepper: Stepper,
        elastic: ElasticLoop,
        ledger: Ledger,
        budget: Budget,
        *,
        every: int,
        nominal: Work,
        reserve: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.stepper, self.elastic, self.ledger, self.budget = stepper, elastic, ledger, budget
        self.every, self.nominal, self.reserve = every, nominal, reserve
        self.model = stepper.model
        self.noise_scale: NoiseScale | None = None
        self.exchanges = Exchanges()
        self.left: float = math.inf
        self._in_step = Work()
        self._round_bytes = 0
        self._seconds: deque[float] = deque(maxlen=9)
        self._began: float | None = None

    @property
    def processes(self) -> int:
        """1: what the others spend is in the run's own account."""
        return 1

    @property
    def leads(self) -> bool:
        """Whether this worker judges the run at present: the one of rank 0 in the last round."""
        return self.elastic.rank == 0

    def gradients(self, batch: Batch, at: At) -> StepResult:
        result = self.stepper.gradients(batch, at)
        self._in_step = Work(result.targets, result.spent[MODEL].flops)
        return result

    def apply(self, learning_rate_factor: float) -> None:
        self.stepper.apply(learning_rate_factor)
        self.elastic.step(self._in_step.tokens, self._in_step.flops)

    def at(self, step: int) -> int:
        """Inner steps of the run: where this worker took over its state, others took them."""
        return self.elastic.outer.steps

    def counted(self) -> Totals:
        """What the run has spent: in committed rounds, and since the last one by its members, if all of them are there."""
        tally, work = self.elastic.tally, self.elastic.work
        return Totals(
            seconds={"idle": self.elastic.seconds},
            tokens=tally.tokens + tally.size * work.tokens,
            flops=tally.flops + tally.size * work.flops,
            sent=tally.sent + tally.size * self.elastic.unreported,
        )

    def spent(self, own: Totals) -> Totals:
        """As `counted`, but bytes of the budget by the steps that they allow: so progress comes to 1 at the last one. What is
        left over by the last round that there are bytes for counts as spent, and of the round that is due the share of its
        steps that are taken."""
        found, each = self.counted(), self._bytes_of_a_round
        if self.budget.bytes is None or not each:
            return found
        rounds = math.floor((self.budget.bytes - found.sent) / each)
        steps = max(0, rounds * self.every - self.elastic.period)
        return replace(found, sent=math.floor(self.budget.bytes - steps / self.every * each))

    def decide(self, step: int, vote: Vote) -> Vote:
        """Hold the round that is due, if any. The run ends, and a checkpoint is written, right after a round alone: nothing
        that was learnt is left out then. A worker that is asked to stop leaves after the next round; the others go on."""
        now = time.monotonic()
        if self._began is not None:
            self._seconds.append(now - self._began)
            self.ledger.write("step", step=self.elastic.outer.steps)  # whatever a round counts is in the ledger before
        if self.elastic.period and self.elastic.period >= min(self._length, self.left):
            self.run_round()
        self._began = time.monotonic()
        if self.elastic.period:
            return Vote()
        return Vote(left=self.left, stop=vote.stop, save=vote.save and self.elastic.outer.steps > 0)

    @property
    def _length(self) -> int:
        """Inner steps of this period."""
        new = self.budget.seconds is not None and not self.elastic.tally.credited
        return min(self.every, FIRST_PERIOD) if new else self.every

    def run_round(self) -> RoundAttempt:
        """A round: join the run, or exchange what was learnt."""
        with self.ledger.clock("sync_exposed"):
            left = min(self._time_left(), self._bytes_left())
            attempt = self.elastic.run_round({"left": int(left) if math.isfinite(left) else None})
        self.reconcile()
        self._round_bytes = attempt.sent
        self.left = self._steps_left(attempt)
        return attempt

    def count(self, attempt: RoundAttempt) -> None:
        """Account for an attempt at a round, and report pseudo-gradients that were not finite."""
        self.exchanges.rounds += 1
        self.exchanges.add_bytes(attempt.sent, attempt.received, attempt.sent_by_role)
        self.exchanges.exposed += attempt.seconds
        self.exchanges.abandoned += not attempt.committed
        self.exchanges.dropped += len(attempt.dropped)
        for rank in attempt.dropped:
            log.warning(
                f"round {attempt.round}: the pseudo-gradient of worker {attempt.ids[rank]} is not finite and was left out"
            )
        self.ledger.charge(Charge(sent=attempt.sent, received=attempt.received))

    def _time_left(self) -> float:
        """Inner steps that there is time for, infinite where that is not known."""
        if self.budget.seconds is None or not self._seconds:
            return math.inf
        remaining = self.budget.seconds - self.reserve() - self.elastic.seconds
        return max(0, math.floor(remaining / max(median(self._seconds), 1e-9) + 0.5))

    @property
    def _bytes_of_a_round(self) -> int:
        """What all workers will send, going by what this one sent in the last round; 0 where that is not known."""
        return self.elastic.tally.size * self._round_bytes

    def _bytes_left(self) -> float:
        """Inner steps that there are bytes for after the round that is due, infinite where that is not known."""
        each = self._bytes_of_a_round
        if self.budget.bytes is None or not each:
            return math.inf
        remaining = self.budget.bytes - self.counted().sent - each
        return max(0, math.floor(remaining / each)) * self.every

    def _steps_left(self, attempt: RoundAttempt) -> float:
        """Inner steps until the budget is spent: all members find the same, for it follows from what all were told."""
        tally, limits = self.elastic.tally, self.budget.limits
        shares = len(attempt.contributed) * attempt.steps
        left = math.inf
        for resource, spent, nominal in (
            ("tokens", tally.tokens, self.nominal.tokens),
            ("flops", tally.flops, self.nominal.flops),
        ):
            each = attempt.added / shares if resource == "tokens" and shares else nominal
            if resource in limits:
                left = min(left, math.ceil((limits[resource] - spent) / (tally.size * each)))
        told = [note["left"] for note in attempt.notes if note is not None and note["left"] is not None]
        left = min(left, min(told, default=math.inf))
        if tally.seconds >= limits.get("seconds", math.inf) or tally.sent >= limits.get("bytes", math.inf):
            left = 0
        return left

    def reconcile(self) -> None:
        """Put on the ledger as discarded what it holds and the run does not."""
        kept = self.elastic.tally.credited.get(self.elastic.identity, Work())
        totals = self.ledger.totals
        tokens, flops = max(totals.tokens - kept.tokens, 0), max(totals.flops - kept.flops, 0)
        if tokens or flops:
            self.ledger.discard(tokens, flops)
            self.ledger.write("discard", step=self.elastic.outer.steps, lost_tokens=tokens)

    def agree(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def figures(self) -> dict[str, float]:
        found = self.exchanges
        return {
            "workers": self.elastic.tally.size,
            "processes": self.elastic.tally.size,
            "tokens_of_all": self.elastic.tally.tokens,
            "sent": found.sent,
            "received": found.received,
            "sync_exposed": round(found.exposed, 4),
            "sync_hidden": 0.0,
        }

    def summary(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """What the run came to, as far as this worker was told; its own part is under 'worker'."""
        tally = self.elastic.tally
        spent = self.budget.spent(self.counted())
        return {
            "binding": spent.binding,
            "spent": spent.shares,
            "tokens": tally.tokens,
            "flops": tally.flops,
            "seconds": self.elastic.seconds,
            "tokens_per_second": tally.tokens / tally.seconds if tally.seconds else None,
            "workers": tally.size,
            "processes": tally.size,
            "judged_by": self.elastic.identity,
            "sequences_handed_out": tally.sequences,
            "credited": {name: work.tokens for name, work in tally.credited.items()},
            "worker": {key: own[key] for key in ("tokens", "tokens_discarded", "flops", "flops_discarded")},
            "exchanges": asdict(self.exchanges),
        }

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        with self.elastic.outer.global_weights():
            yield

    def conclude(self) -> None:
        """The last step was followed by a round."""

    def finish(self) -> None:
        """The global weights are in the model since the last round."""

    def weights(self) -> dict[str, Tensor]:
        with self.elastic.outer.global_weights():
            return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """The run's state as of the last committed round, this worker's inner optimiser and its residuals: back from this
        checkpoint it goes on with them, if the run goes on from that round."""
        shared, values = self.elastic.save(residuals=True)
        moments, record = flatten_state(self.stepper.optimizer)
        tensors = {f"shared:{name}": tensor for name, tensor in shared.items()}
        tensors |= {f"inner:{name}": tensor for name, tensor in moments.items()}
        return tensors, {
            "shared": values,
            "inner": record,
            "round": self.elastic.round,
            "lineage": self.elastic.lineage,
            "untold": self.elastic.unreported,
        }

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Any) -> None:
        elastic = self.elastic
        elastic.outer.join(under(tensors, "shared:"), values["shared"]["outer"])
        elastic.tally = Tally.of(values["shared"]["tally"])
        elastic.round, elastic.lineage, elastic.unreported = values["round"], values["lineage"], values["untold"]
        restore_state(self.stepper.optimizer, under(tensors, "inner:"), values["inner"])
