"""A run whose model is cut into the stages of a pipeline, each in a process of its own."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from shoestring.budget.budget import Budget
from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL, Ledger, Totals
from shoestring.config import Tree, build, tree
from shoestring.contract.batch import Batch
from shoestring.contract.cost import Shape
from shoestring.contract.objective import At
from shoestring.data.windows import BatchSource
from shoestring.errors import UsageError
from shoestring.model.stages import Last, cut
from shoestring.model.transformer import Transformer
from shoestring.optim.partition import NO_HEAD, partition
from shoestring.schedule.batch_rule.rule import scale_to_batch
from shoestring.schedule.transfer.rule import scale_groups
from shoestring.sync.pipeline.batch import MicroBatch
from shoestring.sync.pipeline.engine import Pipeline
from shoestring.train.assembly import Parts, rules_for
from shoestring.train.config import RunConfig
from shoestring.train.noise_scale import NoiseScale
from shoestring.train.participation import Joined
from shoestring.train.step import StepResult
from shoestring.train.vote import Vote

log = logging.getLogger(__name__)

FOLDER = "stages"
"""Of a run's folder: where the recovery by checkpoints keeps those of the stages."""


@dataclass(frozen=True)
class PartOptimizer:
    """Makes the optimiser of one part of the model in the part's process, as `assemble` makes that of the whole model.

    config: the run's, as plain values: they are sent to the process.
    """

    config: Tree

    def __call__(self, module: nn.Module) -> torch.optim.Optimizer:
        config = build(RunConfig, self.config)
        head = "head.weight" if isinstance(module, Last) else NO_HEAD
        optimizer = partition(module, config.optim, config.fallback, head=head).build()
        scale_groups(rules_for(config), optimizer.param_groups)
        scale_to_batch(config.batch_rule.build(), optimizer.param_groups, config.train.batch)
        return optimizer


class PipelineWorker:
    """The `Worker` and `Company` of a run whose stages are processes that may die.

    pipeline: the stages; its batches are to be `batches`.
    parts: of this process, whose model the stages' weights are collected in.
    source: every sequence of the run.
    ledger: tokens of steps that were set back are discarded on it.
    """

    leads, processes = True, 1
    noise_scale: NoiseScale | None = None
    pipeline: Pipeline

    def __init__(self, config: RunConfig, parts: Parts, source: BatchSource, ledger: Ledger) -> None:
        self.config, self.source, self.ledger = config, source, ledger
        self.model, self.step_flops = parts.model, parts.optimizer.step_flops()
        context = config.model.context
        self.flops_a_token = parts.model.cost(Shape(1, context, backward=True)).flops / context
        self._given: tuple[int, Batch] | None = None
        self._discarded = self._sent = 0

    def batches(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step, which is asked for again where a lost stage has set the run back."""
        rows = self.config.train.batch
        given = self._given is not None and self._given[0] == step
        batch = self._given[1] if self._given is not None and given else self.source.batch(step * rows, rows)
        micro = self.config.train.micro_batch or -(-rows // self.config.pipeline.stages)
        return [MicroBatch(part.inputs.values, part.targets) for part in batch.split(micro)]

    def gradients(self, batch: Batch, at: At) -> StepResult:
        accounts, self._given = self.pipeline.accounts, (at.step, batch)
        before = accounts.tokens_seen
        report = self.pipeline.gradients()
        tokens = accounts.tokens_seen - before
        self._report = report
        spent = Charge(tokens=tokens, flops=round(tokens * self.flops_a_token) + self.step_flops)
        return StepResult(report.loss, report.gradient_norm, report.gradient_norm_1, report.tokens, {MODEL: spent})

    def apply(self, learning_rate_factor: float) -> None:
        self.pipeline.apply(self._report, learning_rate_factor)
        sent = self.pipeline.bytes_by_role().total()
        self.ledger.charge(Charge(sent=sent - self._sent, received=sent - self._sent))
        self._sent = sent

    def at(self, step: int) -> int:
        """The step that the stages stand at: an earlier one where a recovery has set them back."""
        return self.pipeline.step

    def spent(self, own: Totals) -> Totals:
        return own

    def decide(self, step: int, vote: Vote) -> Vote:
        """As asked. What was trained on in vain since the last step is put on the ledger as discarded."""
        lost = self.pipeline.accounts.tokens_discarded - self._discarded
        if lost:
            self._discarded += lost
            self.ledger.discard(lost, round(lost * self.flops_a_token))
            self.ledger.write("discard", step=self.pipeline.step, lost_tokens=lost)
        return vote

    def agree(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def figures(self) -> dict[str, float]:
        return {"stages": self.pipeline.count, "failures": self.pipeline.accounts.failures, "sent": self._sent}

    def summary(self, own: Mapping[str, Any]) -> dict[str, Any]:
        accounts = self.pipeline.accounts
        return {
            "pipeline": {
                "stages": self.pipeline.count,
                "recovery": self.config.pipeline.recovery.name,
                "failures": accounts.failures,
                "goodput": accounts.goodput,
                "tokens_seen": accounts.tokens_seen,
                "tokens_discarded": accounts.tokens_discarded,
                "seconds": dict(accounts.seconds),
                "sent_by_role": dict(self.pipeline.bytes_by_role()),
            }
        }

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        self.pipeline.collect()
        yield

    def conclude(self) -> None:
        """Every step has exchanged all that there is."""

    def finish(self) -> None:
        self.pipeline.collect()

    def weights(self) -> dict[str, Tensor]:
        """The model as `state` has just left it: both are of one moment."""
        return dict(self.model.state_dict())

    def state(self) -> tuple[dict[str, Tensor], Any]:
        return self.pipeline.state()

    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Any) -> None:
        self.model.load_state_dict(weights)
        self.pipeline.restore(tensors, values)


class PipelineParticipation:
    """The `Participation` of the process that coordinates a pipeline. A context manager: the stages end with it.

    folder: the run's; the recovery by checkpoints keeps those of the stages in it.
    threads: of the process of each stage.
    """

    rank, decisions = None, None

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.folder, self.threads = folder / FOLDER, threads
        self.pipeline: Pipeline | None = None

    def budget(self, config: RunConfig) -> Budget:
        return config.budget

    def join(self, config: RunConfig, parts: Parts, ledger: Ledger) -> Joined:
        """As `Participation`. Raises: UsageError where the model or the recovery cannot be had in so many stages."""
        if not isinstance(parts.model, Transformer):
            raise UsageError("transport = pipeline: only a model of Shoestring's own can be cut into stages")
        first, stages, last = cut(parts.model, config.pipeline.stages)
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier process: the run's own checkpoints are newer
        worker = PipelineWorker(config, parts, parts.source, ledger)
        self.pipeline = worker.pipeline = Pipeline(
            first,
            stages,
            last,
            optimizer=PartOptimizer(tree(config)),
            batches=worker.batches,
            recovery=config.pipeline.recovery.build(),
            clip=config.train.gradient_clip,
            folder=self.folder,
            threads=self.threads,
            timeout=config.pipeline.silence,
        )
        pids = ", ".join(map(str, self.pipeline.processes()))
        log.info(f"{config.pipeline.stages} stages in processes {pids}; recovery: {config.pipeline.recovery.name}")
        return Joined(worker, worker, parts.source)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pipeline is not None:
            self.pipeline.close()
        shutil.rmtree(self.folder, ignore_errors=True)
