"""The place of a worker that comes and goes: its share of the data, its team, and the record of its rounds."""

import logging
import time
from dataclasses import asdict

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import Ledger
from shoestring.errors import ShoestringError
from shoestring.optim.partition import members
from shoestring.sync.elastic.loop import ElasticLoop, RoundAttempt
from shoestring.sync.elastic.run_status import RunStatus
from shoestring.sync.elastic.tally import Work
from shoestring.sync.transport.local import LocalGroup
from shoestring.train.assembly import Parts, planned_flops
from shoestring.train.config import RunConfig
from shoestring.train.elastic.inner import InnerState
from shoestring.train.elastic.team import ElasticBatches, ElasticTeam
from shoestring.train.participation import Joined
from shoestring.train.run_folder import JsonLines
from shoestring.train.worker_batches import WorkerBatches

log = logging.getLogger(__name__)


class ElasticParticipation:
    """The `Participation` of one worker among others that come and go.

    identity: its name in the run.
    run_status: the run's, in the store of its lighthouse.
    rounds: the file that takes a line for every attempt at a round.
    since: the monotonic clock when the run's time began, for its first workers; None for one that joins.
    team: of the worker, once it has joined.
    """

    rank, decisions = 0, None
    team: ElasticTeam

    def __init__(self, identity: str, run_status: RunStatus, rounds: JsonLines, since: float | None = None) -> None:
        self.identity, self.run_status, self.rounds, self.since = identity, run_status, rounds, since

    def budget(self, config: RunConfig) -> Budget:
        """The whole run's, which all workers spend together."""
        return config.budget

    def join(self, config: RunConfig, parts: Parts, ledger: Ledger) -> Joined:
        stepper, source = parts.stepper, parts.source
        loop = config.sync.build()
        roles = {member.name: member.role for member in members(stepper.model)}
        outer = loop.attach(stepper.model, stepper.optimizer, LocalGroup(1).transports[0], roles=roles)
        own = config.train.batch // config.workers

        def over() -> bool:
            try:
                return bool(self.run_status.finished_by())
            except ShoestringError as error:
                log.warning(f"{error}; going on")  # a later round says so again
                return False

        elastic = ElasticLoop(
            outer,
            self.identity,
            sequences=own,
            inner=InnerState(stepper.optimizer),
            over=over,
            record=self._record_round,
            since=self.since,
        )
        flops = planned_flops(stepper, own, config.model.context)
        self.team = ElasticTeam(
            stepper,
            elastic,
            ledger,
            config.budget,
            every=loop.every,
            nominal=Work(own * config.model.context, flops),
        )
        every_sequence = source.source if isinstance(source, WorkerBatches) else source
        return Joined(self.team, self.team, ElasticBatches(every_sequence, elastic))

    def _record_round(self, attempt: RoundAttempt) -> None:
        elastic = self.team.elastic
        self.team.count(attempt)
        named = {"round": attempt.round, "at": time.time(), "step": elastic.outer.steps, **asdict(attempt)}
        del named["notes"]
        self.rounds.append(named | {"tokens": elastic.tally.tokens, "run_seconds": elastic.tally.seconds})
