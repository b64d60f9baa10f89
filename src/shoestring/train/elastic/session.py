"""The run of one worker among others that come and go, from its first second to its last."""

import logging
from collections.abc import Callable, Sequence

from shoestring.budget.ledger import Ledger
from shoestring.data.dataset import Dataset
from shoestring.errors import UsageError
from shoestring.sync.elastic.fault_tolerant import FaultTolerantTransport
from shoestring.sync.elastic.loop import RunOver
from shoestring.sync.elastic.run_status import RunStatus
from shoestring.train import checkpoint
from shoestring.train.config import RunConfig
from shoestring.train.elastic.participation import ElasticParticipation
from shoestring.train.run_folder import JsonLines, RunFolder
from shoestring.train.session import Outcome, Record, Session, require_same_text

log = logging.getLogger(__name__)

ROUNDS = "rounds.jsonl"
"""The file of a worker's rounds, in its folder."""

ASSEMBLY = 60.0
"""Seconds that the first workers of a run wait for each other before it begins without those who are missing."""


class ElasticSession:
    """A worker's run in hand. Its folder holds what a run's folder does, and rounds.jsonl: a line for every attempt at one.

    config, folder, ledger, dataset, view: as of a `Session`.
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
        view: Record,
        *,
        identity: str,
        companions: Sequence[str],
        run_status: RunStatus,
        link: Callable[..., FaultTolerantTransport],
        since: float | None = None,
    ) -> None:
        self.identity, self.companions, self.run_status, self.link = identity, companions, run_status, link
        self.folder, self.dataset = folder, dataset
        self.rounds = JsonLines(folder.path / ROUNDS)
        participation = ElasticParticipation(identity, run_status, self.rounds, since)
        self.session = Session(config, folder, ledger, dataset, view, participation)
        self.team = participation.team
        self.team.reserve = lambda: self.session.loop.reserve

    def run(self) -> Outcome:
        """Join the run and train until its budget is spent, or until this worker is asked to stop.

        Raises: UsageError where the run has ended; ShoestringError where no round is to be had.
        """
        if self.run_status.finished_by():
            raise UsageError("the run has ended: there is nothing to join")
        elastic = self.team.elastic
        elastic.connect(self.link)
        try:
            self.run_status.wait_for_start(self.identity, list(self.companions), timeout=ASSEMBLY)
            attempt = self.team.run_round()
            how = ", with the state of another" if attempt.healed else ""
            log.info(f"joined as {self.identity}: {len(attempt.ids)} workers, step {elastic.outer.steps}{how}")
            return self.session.run(self._finish)
        except RunOver:
            self.team.reconcile()
            log.info("the run ended without this worker")
            return Outcome("finished", None, self.session.summarise("finished"), "")
        finally:
            elastic.transport.close()
            self.rounds.close()

    def _finish(self) -> Outcome:
        """The worker of rank 0 judges the run while the others wait in the next round; should it die, another does."""
        outcome = None
        try:
            while True:
                if self.team.leads and outcome is None:
                    outcome = self.session.finish()
                    self.run_status.mark_finished(self.identity)
                self.team.run_round()
        except RunOver:
            if outcome is None:
                self.session.loop.save()
                outcome = Outcome("finished", None, self.session.summarise("finished"), "")
        return outcome

    def restore(self, step: int | None = None) -> None:
        """Begin from this worker's newest checkpoint, if there is one: the state that the run has if nobody has a later one.

        step: of the checkpoint; None: the newest.
        Raises: ShoestringError where the data has changed or the checkpoint is damaged.
        """
        if not checkpoint.list_checkpoints(self.folder.checkpoints):
            return
        found, snapshot = checkpoint.load(self.folder.checkpoints, step)
        require_same_text(snapshot.state["data"], self.dataset, self.session.config)
        self.team.restore(snapshot.model, snapshot.optimizer, snapshot.state["optimizer"])
        self.session.loop.restore(snapshot.state)
        log.info(f"this worker's own checkpoint is of step {found}")
