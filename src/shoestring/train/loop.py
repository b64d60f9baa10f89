"""The loop: steps until the budget is spent, with evaluations and checkpoints on the way, all on the ledger."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import EVALUATION, MODEL, Ledger
from shoestring.contract.objective import At
from shoestring.data.windows import BatchSource
from shoestring.train.config import TrainConfig
from shoestring.train.course import Course
from shoestring.train.evaluate import Evaluator, Heldout
from shoestring.train.health import LossWatch
from shoestring.train.step import Steps
from shoestring.train.stopping import StopRequest
from shoestring.train.vote import Vote

LOG_SECONDS = 0.5
"""Least time between two lines of metrics."""

FORWARD_SHARE = 0.4
"""An evaluation's share of the time of training on as many tokens: a guess until one is measured."""


@dataclass
class Position:
    """Where a run stands. sequences: of the global order, consumed. progress: spent share of the budget at the last step.
    evaluations: held-out evaluations done. milestones: of the schedule, passed."""

    step: int = 0
    sequences: int = 0
    progress: float = 0.0
    evaluations: int = 0
    milestones: int = 0


@dataclass
class Window:
    """Running sums between two lines of metrics."""

    losses: list[float] = field(default_factory=list)
    targets: int = 0
    since: float = field(default_factory=time.monotonic)


class Loop:
    """Trains until `budget` is spent. The parts it joins know nothing of each other.

    record: takes each line of metrics.
    checkpoint: writes one.
    closing_seconds: what follows the last step (held-out evaluation, checkpoint, sample), kept back from a budget in seconds;
    corrected as these are measured.
    budget, ledger, source: of this process, where several work on one run; `Steps.leads` says which of them evaluates.
    sequences: how many a step takes of all, by progress.
    milestones: shares of the budget, in order, at which `milestone` is called with the share and the held-out loss there.
    """

    def __init__(
        self,
        *,
        stepper: Steps,
        schedule: Course,
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
        closing_seconds: float,
    ) -> None:
        self.stepper, self.schedule, self.source, self.evaluator = stepper, schedule, source, evaluator
        self.budget, self.ledger, self.settings = budget, ledger, settings
        self.sequences = sequences
        self.milestones, self.milestone = milestones, milestone
        self.record, self.checkpoint = record, checkpoint
        self.watch = LossWatch(settings.spike)
        self.position = Position()
        self.other_closing = closing_seconds
        self.evaluation_seconds, self.evaluated = 0.0, False
        self.step_seconds: list[float] = []
        self.latest: dict[str, float] = {}
        self.last_cost: dict[str, int] = {}

    @property
    def reserve(self) -> float:
        """Seconds kept back for what follows the last step."""
        return self.evaluation_seconds + self.other_closing

    def _spent(self, waiting: float = 0.0) -> tuple[float, float]:
        """(progress, steps that there is budget for: below 1 when it is spent, infinite where that is not known yet).

        waiting: seconds that are about to pass without a step.
        """
        totals = self.stepper.spent(self.ledger.totals)
        spent = self.budget.spent(totals, self.reserve)
        progress = max(self.position.progress, spent.progress)
        if spent.progress >= 1.0:
            return progress, 0
        limits, left = self.budget.limits, math.inf
        if "seconds" in limits and self.step_seconds:
            # the step that would cross the end by more than half is not begun
            remaining = limits["seconds"] - self.reserve - totals.wall_clock - waiting
            left = math.floor(remaining / max(median(self.step_seconds[-9:]), 1e-9) + 0.5)
        for resource, each in self.last_cost.items():
            if resource in limits and each:
                left = min(left, math.ceil((limits[resource] - getattr(totals, resource)) / each))
        return progress, left

    def run(self, stop: StopRequest) -> str:
        """Returns 'finished' when the budget is spent, 'interrupted' when asked to stop. Raises: Diverged."""
        window, last_checkpoint = Window(), time.monotonic()
        while True:
            progress, left = self._spent()
            due = time.monotonic() - last_checkpoint >= self.settings.checkpoint_every
            agreed = self.stepper.decide(self.position.step, Vote(left, stop.asked is not None, due))
            if self.stepper.at(self.position.step) != self.position.step:
                progress = self._go_on_from_others()
            if agreed.left < 1 or agreed.stop:
                if window.losses:
                    self._log(progress, window)
                return "finished" if agreed.left < 1 else "interrupted"
            if agreed.save:
                self.save()
                last_checkpoint = time.monotonic()
            if self.schedule.switches(self.position.progress, progress):
                self.watch = LossWatch(self.settings.spike)  # the loss jumps, as it must, and falls again
            self.position.progress = progress
            self._step(progress, window)
            if time.monotonic() - window.since >= LOG_SECONDS or self.position.step == 1:
                self._log(progress, window)
                window = Window()
            spent = self._spent()[0]
            self._pass_milestone(spent)
            evaluations = int(spent / self.settings.evaluate_every)
            if evaluations > self.position.evaluations and evaluations * self.settings.evaluate_every < 1:
                self.position.evaluations = evaluations
                # one that no step can follow would be made again at the end, of the same weights
                if self.stepper.leads and self._spent(self.evaluation_seconds)[1] >= 1:
                    self.evaluate()

    def _go_on_from_others(self) -> float:
        """This worker has taken over the state of a run that went on without it. Returns the progress there."""
        self.position.step = self.stepper.at(self.position.step)
        progress = self._spent()[0]
        self.position.evaluations = int(progress / self.settings.evaluate_every)
        return progress

    def _pass_milestone(self, spent: float) -> None:
        """Evaluate and tell where a milestone before the end was passed; that of the end is the end's own."""
        passed = sum(share <= spent for share in self.milestones if share < 1)
        if passed > self.position.milestones:
            self.position.milestones = passed
            self.milestone(self.milestones[passed - 1], self.evaluate())

    def _step(self, progress: float, window: Window) -> None:
        began = time.monotonic()
        count = self.sequences(progress)
        with self.ledger.clock("data"):
            batch = self.source.batch(self.position.sequences, count)
        cause = "compile" if self.position.step == 0 or not self.step_seconds else "compute"
        with self.ledger.clock(cause), self.schedule.step(progress):
            result = self.stepper.gradients(batch, At(self.position.step, progress))
            self.watch.look(self.position.step + 1, result.loss, result.gradient_norm)
            factor = self.schedule(progress)
            self.stepper.apply(factor)
        own = result.spent[MODEL]
        self.last_cost = {"tokens": own.tokens, "flops": own.flops}
        self.ledger.charge_all(result.spent)
        self.position.step += 1
        self.position.sequences += count
        took = time.monotonic() - began
        if self.step_seconds and not self.evaluated:  # the first step of a process compiles: it tells nothing
            per_sequence = min([took, *self.step_seconds[1:]]) / count
            self.evaluation_seconds = FORWARD_SHARE * per_sequence * self.evaluator.sequences
        self.step_seconds.append(took)
        del self.step_seconds[:-9]
        window.losses.append(result.loss)
        window.targets += result.targets
        self.latest = {"learning_rate_factor": factor, "gradient_norm": result.gradient_norm}
        self.latest["gradient_norm_1"] = result.gradient_norm_1
        noise = self.stepper.noise_scale
        if noise is not None and noise.critical_batch is not None:
            self.latest["critical_batch"] = noise.critical_batch

    def _where(self) -> dict[str, Any]:
        totals = self.stepper.spent(self.ledger.totals)
        return {
            "step": self.position.step,
            "progress": self.position.progress,
            "seconds": round(totals.wall_clock, 4),
            "flops": totals.flops,
            "tokens": totals.tokens,
        }

    def _log(self, progress: float, window: Window) -> None:
        seconds = max(time.monotonic() - window.since, 1e-9)
        loss = sum(window.losses) / len(window.losses)
        rate = window.targets / seconds
        self.record(
            {
                "kind": "train",
                **self._where(),
                "loss": loss,
                **self.latest,
                **self.stepper.figures(),
                "tokens_per_second": round(rate, 1),
            }
        )
        self.ledger.write("train", step=self.position.step)

    def evaluate(self) -> Heldout:
        """Held-out loss now, recorded."""
        began = time.monotonic()
        with self.ledger.clock("evaluate"), self.stepper.evaluation_weights():
            found = self.evaluator(self.stepper.model)
        self.ledger.charge(found.spent, EVALUATION)
        self.evaluation_seconds, self.evaluated = time.monotonic() - began, True
        line = {"loss": found.loss, "bits_per_byte": found.bits_per_byte, "targets": found.targets}
        self.record({"kind": "heldout", **self._where(), **line})
        self.ledger.write("evaluate", step=self.position.step)
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the loop itself, as JSON values."""
        noise = self.stepper.noise_scale
        measured = {} if noise is None else {"noise_scale": noise.state()}
        return {"position": asdict(self.position), "watch": self.watch.state(), **measured}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position = Position(**state["position"])
        self.watch.restore(state["watch"])
        if self.stepper.noise_scale is not None:
            self.stepper.noise_scale.restore(state["noise_scale"])

    def save(self) -> None:
        """A checkpoint of this position."""
        # written first: whatever a checkpoint holds is in the ledger, should the process die between the two
        self.ledger.write("train", step=self.position.step)
        with self.ledger.clock("checkpoint"):
            self.checkpoint()
        self.ledger.write("checkpoint", step=self.position.step)
