"""The run of one worker among others that come and go, from its first second to its last."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from shoestring.budget.ledger import Ledger
from shoestring.data.dataset import Dataset
from shoestring.errors import ShoestringError, UsageError
from shoestring.optim.partition import members
from shoestring.sync.elastic.fault_tolerant import FaultTolerantTransport
from shoestring.sync.elastic.loop import ElasticLoop, RoundAttempt, RunOver
from shoestring.sync.elastic.run_status import RunStatus
from shoestring.sync.elastic.tally import Work
from shoestring.sync.transport.local import LocalGroup
from shoestring.train import checkpoint
from shoestring.train.assembly import planned_flops
from shoestring.train.closing import summary
from shoestring.train.config import RunConfig
from shoestring.train.elastic.inner import InnerState
from shoestring.train.elastic.team import ElasticTeam, Share
from shoestring.train.part import Part
from shoestring.train.run_folder import JsonLines, RunFolder
from shoestring.train.session import Outcome, Record, Say, Session, require_same_text
from shoestring.train.step import Steps

ROUNDS = "rounds.jsonl"
"""The file of a worker's rounds, in its folder."""

ASSEMBLY = 60.0
"""Seconds that the first workers of a run wait for each other before it begins without those who are missing."""


class ElasticSession(Session):
    """A worker's run in hand. Its folder holds what a run's folder does, and rounds.jsonl: a line for every attempt at one.

    identity: its name in the run.
    companions: the names of those that begin the run together.
    run_status: the run's, in the store of its lighthouse.
    link: makes the transport (see `ElasticLoop.connect`).
    since: the monotonic clock when the run's time began, for its first workers; None for one that joins.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        ledger: Ledger,
        dataset: Dataset,
        say: Say,
        view: Record,
        *,
        identity: str,
        companions: Sequence[str],
        run_status: RunStatus,
        link: Callable[..., FaultTolerantTransport],
        since: float | None = None,
    ) -> None:
        self.identity, self.companions, self.run_status, self.link, self.since = (
            identity,
            companions,
            run_status,
            link,
            since,
        )
        self.rounds = JsonLines(folder.path / ROUNDS)
        super().__init__(config, folder, ledger, dataset, say, view)
        self.crew.reserve = lambda: self.loop.reserve

    def _worker(self) -> int | None:
        return 0

    def _join(self) -> Steps:
        config, stepper, source = self.config, self.parts.stepper, self.parts.source
        loop = config.sync.build()
        roles = {member.name: member.role for member in members(stepper.model)}
        outer = loop.attach(stepper.model, stepper.optimizer, LocalGroup(1).transports[0], roles=roles)
        own = config.train.batch // config.workers
        elastic = ElasticLoop(
            outer,
            self.identity,
            sequences=own,
            inner=InnerState(stepper.optimizer),
            over=self._over,
            record=self._record_round,
            since=self.since,
        )
        flops = planned_flops(stepper, own, config.model.context)
        self.crew = ElasticTeam(
            stepper,
            elastic,
            self.ledger,
            config.budget,
            every=loop.every,
            nominal=Work(own * config.model.context, flops),
            say=self.say,
        )
        every_sequence = source.source if isinstance(source, Part) else source
        self.parts = replace(self.parts, source=Share(every_sequence, elastic))
        return self.crew

    @property
    def elastic(self) -> ElasticLoop:
        return self.crew.elastic

    def run(self) -> Outcome:
        """Join the run and train until its budget is spent, or until this worker is asked to stop.

        Raises: UsageError where the run has ended; ShoestringError where no round is to be had.
        """
        if self.run_status.finished_by():
            raise UsageError("the run has ended: there is nothing to join")
        self.elastic.connect(self.link)
        try:
            self.run_status.wait_for_start(self.identity, list(self.companions), timeout=ASSEMBLY)
            attempt = self.crew.run_round()
            how = ", with the state of another" if attempt.healed else ""
            self.say(f"joined as {self.identity}: {len(attempt.ids)} workers, step {self.elastic.outer.steps}{how}")
            return super().run()
        except RunOver:
            self.crew.reconcile()
            self.say("the run ended without this worker")
            return Outcome("finished", None, self._summarise("finished", {}), "")
        finally:
            self.elastic.transport.close()
            self.rounds.close()

    def _finish(self) -> Outcome:
        """The worker of rank 0 judges the run while the others wait in the next round; should it die, another does."""
        outcome = None
        try:
            while True:
                if self.steps.leads and outcome is None:
                    outcome = super()._finish()
                    self.run_status.mark_finished(self.identity)
                self.crew.run_round()
        except RunOver:
            if outcome is None:
                self.loop.save()
                outcome = Outcome("finished", None, self._summarise("finished", {}), "")
        return outcome

    def _over(self) -> bool:
        try:
            return bool(self.run_status.finished_by())
        except ShoestringError as error:
            self.say(f"{error}; going on")  # a later round says so again
            return False

    def _checkpoint(self) -> None:
        step = self.loop.position.step
        if step in checkpoint.list_checkpoints(self.folder.checkpoints):
            checkpoint.remove(self.folder.checkpoints, step)  # of a past that the run did not go on from
        super()._checkpoint()

    def _record_round(self, attempt: RoundAttempt) -> None:
        self.crew.count(attempt)
        named = {"round": attempt.round, "at": time.time(), "step": self.elastic.outer.steps, **asdict(attempt)}
        del named["notes"]
        self.rounds.append(named | {"tokens": self.elastic.tally.tokens, "run_seconds": self.elastic.tally.seconds})

    def _summarise(self, stopped: str, found: Mapping[str, Any]) -> dict[str, Any]:
        self.ledger.write("end", stopped=stopped)
        config, tally = self.config, self.elastic.tally
        own = summary(config, self.parts.model, self.loop.position.step, self.ledger, stopped)
        spent = config.budget.spent(self.crew.counted())
        content = own | {
            "binding": spent.binding,
            "spent": spent.shares,
            "tokens": tally.tokens,
            "flops": tally.flops,
            "seconds": self.elastic.seconds,
            "tokens_per_second": tally.tokens / tally.seconds if tally.seconds else None,
            "workers": tally.size,
            "processes": tally.size,
            "judged_by": self.identity,
            "sequences_handed_out": tally.sequences,
            "credited": {name: work.tokens for name, work in tally.credited.items()},
            "worker": {key: own[key] for key in ("tokens", "tokens_discarded", "flops", "flops_discarded")},
            "exchanges": asdict(self.crew.exchanges),
            **found,
        }
        self.folder.write_json("summary.json", content)
        return content

    def restore(self, step: int | None = None) -> None:
        """Begin from this worker's newest checkpoint, if there is one: the state that the run has if nobody has a later one.

        Raises: ShoestringError where the data has changed or the checkpoint is damaged.
        """
        if not checkpoint.list_checkpoints(self.folder.checkpoints):
            return
        found, snapshot = checkpoint.load(self.folder.checkpoints, step)
        require_same_text(snapshot.state["data"], self.dataset, self.config)
        self.steps.restore(snapshot.model, snapshot.optimizer, snapshot.state["optimizer"])
        self.loop.restore(snapshot.state)
        self.say(f"this worker's own checkpoint is of step {found}")
