"""The loop: steps until the budget is spent, with evaluations and checkpoints on the way, all on the ledger."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import MODEL, Ledger, Totals, is_limited
from shoestring.budget.units import show_seconds
from shoestring.contract.objective import At
from shoestring.data.stream import stream_of
from shoestring.data.windows import BatchSource
from shoestring.errors import ShoestringError
from shoestring.train.applied_schedules import AppliedSchedules
from shoestring.train.company import Company, Worker
from shoestring.train.evaluate import Evaluator, Heldout
from shoestring.train.health import LossWatch
from shoestring.train.judging import JudgedTexts, Judging
from shoestring.train.sections import TrainConfig
from shoestring.train.speed import Speed
from shoestring.train.stopping import StopRequest
from shoestring.train.vote import Vote

log = logging.getLogger(__name__)

LOG_SECONDS = 0.5
"""Least time between two lines of metrics."""


class NothingTrained(ShoestringError):
    """The budget was spent before the first step."""


@dataclass
class Position:
    """Where a run stands.

    sequences: of the global order, consumed.
    progress: spent share of the budget at the last step.
    evaluations: held-out evaluations done.
    milestones: of the schedule, passed.
    """

    step: int = 0
    sequences: int = 0
    progress: float = 0.0
    evaluations: int = 0
    milestones: int = 0


@dataclass
class RunningSums:
    """Running sums between two lines of metrics.

    since: when it began, put off by all that was no training meanwhile.
    """

    since: float
    losses: list[float] = field(default_factory=list)
    targets: int = 0


class Loop:
    """Trains until `budget` is spent. The parts it joins know nothing of each other.

    worker: computes the steps.
    company: decides with the other workers, if there are any.
    schedule: sets what hangs on progress.
    evaluator: judges on held-out text.
    record: takes each line of metrics.
    checkpoint: writes one.
    speed: of this run, by which what follows the last step (held-out evaluation, checkpoint, sample) is kept back from a budget
    in seconds.
    first_cause: of the ledger, for a process's first step.
    old: judges on text that the model could do before, whenever the held-out text is judged, and before the first step.
    budget, ledger, source: of this process, where several work on one run; `Company.leads` says which of them evaluates.
    sequences: how many a step takes of all, by progress.
    returns: how often the run's state was taken over from elsewhere: what was kept before is of another past.
    milestones: shares of the budget, in order, at which `milestone` is called with the share and the held-out loss there.
    """

    def __init__(
        self,
        *,
        worker: Worker,
        company: Company,
        schedule: AppliedSchedules,
        source: BatchSource,
        evaluator: Evaluator,
        budget: Budget,
        ledger: Ledger,
        settings: TrainConfig,
        sequences: Callable[[float], int],
        milestones: Sequence[float],
        milestone: Callable[[float, Heldout], None],
        record: Callable[[Mapping[str, Any]], None],
        checkpoint: Callable[[], None],
        speed: Speed,
        first_cause: str = "start",
        old: Evaluator | None = None,
    ) -> None:
        self.worker, self.company = worker, company
        self.schedule, self.stream = schedule, stream_of(source)
        self.budget, self.ledger, self.settings = budget, ledger, settings
        self.sequences = sequences
        self.milestones, self.milestone = milestones, milestone
        self.record, self.checkpoint = record, checkpoint
        self.speed, self.first_cause = speed, first_cause
        self.judging = Judging(evaluator, old, speed, ledger)
        self.watch = LossWatch(settings.spike)
        self.position = Position()
        self.window = RunningSums(ledger.now())
        self.latest: dict[str, float] = {}
        self.returns = 0
        self.last_cost: dict[str, int] = {}

    @property
    def reserve(self) -> float:
        """Seconds kept back for what follows the last step."""
        return self.speed.reserve

    def _seconds_left(self) -> float:
        """Of the budget, all told; infinite where it has no seconds."""
        limit = self.budget.seconds
        return math.inf if limit is None else limit - self.company.spent(self.ledger.totals).wall_clock

    def _spent(self) -> tuple[float, float]:
        """(progress, steps that there is budget for: below 1 when it is spent, infinite where that is not known yet)."""
        totals = self.company.spent(self.ledger.totals)
        spent = self.budget.spent(totals, self.reserve)
        progress, left = max(self.position.progress, spent.progress), self._steps_left(spent.progress, totals)
        progress, fewest = self.company.agree((progress, -left))
        return progress, -fewest

    def _steps_left(self, progress: float, totals: Totals) -> float:
        if progress >= 1.0:
            return 0
        limits, left = self.budget.limits, math.inf
        if "seconds" in limits:
            left = self.speed.steps_left(limits["seconds"] - self.reserve - totals.wall_clock)
        for resource, each in self.last_cost.items():
            if resource in limits and each:
                left = min(left, math.ceil((limits[resource] - getattr(totals, resource)) / each))
        return left

    def run(self, stop: StopRequest) -> str:
        """Returns 'finished' when the budget is spent, 'interrupted' when asked to stop.

        Raises: Diverged; NothingTrained where it was spent before the first step.
        """
        now = self.ledger.now
        if self.judging.old is not None and self.position.step == 0 and self.company.leads:
            self._record_judged(self.judging.before(self.worker.model, self.budget.seconds))
        self.window, last_checkpoint = RunningSums(now()), now()
        while True:
            progress, left = self._spent()
            due = now() - last_checkpoint >= self.settings.checkpoint_every
            agreed = self.company.decide(self.position.step, Vote(left, stop.asked is not None, due))
            if self.company.at(self.position.step) != self.position.step:
                progress = self._go_on_from_others()
            if agreed.left < 1 or agreed.stop:
                if self.window.losses:
                    self._log(progress)
                if agreed.left < 1 and self.position.step == 0:
                    raise NothingTrained(self._where_it_went())
                return "finished" if agreed.left < 1 else "interrupted"
            if agreed.save:
                self.save()
                last_checkpoint = now()
            if self.schedule.switches(self.position.progress, progress):
                self.watch = LossWatch(self.settings.spike)  # the loss jumps, as it must, and falls again
            self.position.progress = progress
            self._step(progress)
            if now() - self.window.since >= LOG_SECONDS or self.position.step == 1:
                self._log(progress)
            spent = self._spent()[0]
            self._pass_milestone(spent)
            self._evaluate_on_the_way(spent)

    def _where_it_went(self) -> str:
        """Why there was no budget left for a step."""
        seconds = sorted(self.ledger.totals.seconds.items(), key=lambda item: -item[1])
        most = " and ".join(f"{show_seconds(took)} of '{cause}'" for cause, took in seconds[:2])
        return (
            f"no step was trained: the budget of {self.budget} was spent before the first one ({most}); give more, or try "
            "again when the machine is less busy: what was prepared and measured is kept"
        )

    def _evaluate_on_the_way(self, spent: float) -> None:
        """Evaluate where a share of `evaluate_every` was passed and there is time for it."""
        evaluations = int(spent / self.settings.evaluate_every)
        if evaluations <= self.position.evaluations or evaluations * self.settings.evaluate_every >= 1:
            return
        if self.budget.seconds is not None and not self.speed.known:
            return  # after the next step it is known what an evaluation takes
        self.position.evaluations = evaluations
        # one that no step can follow would be made again at the end, of the same weights
        if not self.company.leads or self._spent()[1] < 1:
            return
        left = self._seconds_left()
        (skipped,) = self.company.agree((float(not self.speed.may_evaluate(left - self.reserve)),))
        if not skipped:
            self.evaluate()
        else:
            log.warning(
                f"held-out evaluation at {spent:.0%} skipped: it would take {show_seconds(self.speed.evaluation)} of the "
                f"{show_seconds(max(left, 0))} that are left; a smaller --train.heldout_tokens takes less"
            )

    def _go_on_from_others(self) -> float:
        """The state is another than this process left it at: of a run that went on without it, or of an earlier step. Returns
        the progress there."""
        self.position.step = self.company.at(self.position.step)
        self.returns += 1
        progress = self._spent()[0]
        # a run whose steps may be set back has the same batch in each
        self.position.sequences = self.position.step * self.sequences(progress)
        self.position.evaluations = int(progress / self.settings.evaluate_every)
        return progress

    def _pass_milestone(self, spent: float) -> None:
        """Evaluate and tell where a milestone before the end was passed; that of the end is the end's own."""
        passed = sum(share <= spent for share in self.milestones if share < 1)
        if passed > self.position.milestones:
            self.position.milestones = passed
            self.milestone(self.milestones[passed - 1], self.evaluate())

    def _step(self, progress: float) -> None:
        began = self.ledger.now()
        count = self.sequences(progress)
        if self.ledger.timeline is not None:
            self.ledger.timeline.begin_step(self.position.step + 1)
        with self.ledger.clock("data"):
            batch = self.stream.take(self.position.sequences, count, progress)
        cause = "compute" if self.speed.started else self.first_cause
        with self.ledger.clock(cause), self.schedule.step(progress):
            result = self.worker.gradients(batch, At(self.position.step, progress))
            self.watch.look(self.position.step + 1, result.loss, result.gradient_norm)
            factor = self.schedule(progress)
            with self.ledger.clock(cause, "optimiser" if self.speed.started else ""):
                self.worker.apply(factor)
        limited = sum(charge.flops for account, charge in result.spent.items() if is_limited(account))
        self.last_cost = {"tokens": result.spent[MODEL].tokens, "flops": limited}
        self.ledger.charge_all(result.spent)
        self.position.step += 1
        self.position.sequences += count
        self.speed.took_step(self.ledger.now() - began, count)
        self.window.losses.append(result.loss)
        self.window.targets += result.targets
        self.latest = {"learning_rate_factor": factor, "gradient_norm": result.gradient_norm}
        self.latest["gradient_norm_1"] = result.gradient_norm_1
        self.latest |= result.figures
        noise = self.worker.noise_scale
        if noise is not None and noise.critical_batch is not None:
            self.latest["critical_batch"] = noise.critical_batch

    def _where(self) -> dict[str, Any]:
        totals = self.company.spent(self.ledger.totals)
        return {
            "step": self.position.step,
            "progress": self.position.progress,
            "seconds": round(totals.wall_clock, 4),
            "flops": totals.flops,
            "tokens": totals.tokens,
        }

    def _log(self, progress: float) -> None:
        window, now = self.window, self.ledger.now()
        seconds = max(now - window.since, 1e-9)
        loss = sum(window.losses) / len(window.losses)
        rate = window.targets / seconds
        self.record(
            {
                "kind": "train",
                **self._where(),
                "loss": loss,
                **self.latest,
                **self.company.figures(),
                "tokens_per_second": round(rate, 1),
            }
        )
        self.ledger.write("train", step=self.position.step)
        self.window = RunningSums(now)

    def evaluate(self, last: bool = False) -> Heldout:
        """Held-out loss now, recorded.

        last: nothing but the checkpoint and the sample follow.
        """
        weights = self.company.evaluation_weights()
        judged = self.judging.now(self.worker.model, weights, self._seconds_left(), last)
        self.window.since += judged.seconds
        if judged.heldout.domains:
            self.stream.hear(self.position.progress, judged.heldout.domains)
        self._record_judged(judged)
        return judged.heldout

    def _record_judged(self, judged: JudgedTexts) -> None:
        self.record({"kind": "heldout", **self._where(), **judged.line})
        self.ledger.write("evaluate", step=self.position.step)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the loop itself, as JSON values."""
        noise = self.worker.noise_scale
        kept: dict[str, Any] = {} if noise is None else {"noise_scale": noise.state()}
        stream = self.stream.state()
        if stream is not None:
            kept["stream"] = stream
        judged = self.judging.state()
        if judged is not None:
            kept["judged"] = judged
        return {"position": asdict(self.position), "watch": self.watch.state(), **kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position = Position(**state["position"])
        self.watch.restore(state["watch"])
        if "stream" in state:
            self.stream.restore(state["stream"])
        if "judged" in state:
            self.judging.restore(state["judged"])
        if self.worker.noise_scale is not None:
            self.worker.noise_scale.restore(state["noise_scale"])

    def save(self) -> None:
        """A checkpoint of this position."""
        # written first: whatever a checkpoint holds is in the ledger, should the process die between the two
        self.ledger.write("train", step=self.position.step)
        began = self.ledger.now()
        with self.ledger.clock("checkpoint"):
            self.checkpoint()
        took = self.ledger.now() - began
        self.speed.took_checkpoint(took)
        self.window.since += took
        self.ledger.write("checkpoint", step=self.position.step)
