"""One worker that is several processes: each has a part of the model, of its optimiser's state and of every batch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.budget.budget import Budget
from shoestring.budget.charge import Charge
from shoestring.budget.ledger import Ledger, Totals
from shoestring.contract.batch import Batch
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.data.stream import PartOfStream, Stream
from shoestring.data.windows import BatchSource
from shoestring.parallel.context_parallel import keys_and_values, parts_of_rows
from shoestring.parallel.expert_parallel import expert_layers
from shoestring.parallel.layout import ParallelLayout
from shoestring.parallel.optimizer import ShardedOptimizer
from shoestring.parallel.sharding import Sharded
from shoestring.parallel.traffic import StepTraffic, traffic
from shoestring.sync.transport.base import PeerLost, Transport
from shoestring.train import sharded_checkpoint
from shoestring.train.assembly import Parts
from shoestring.train.base import build_model, frozen_of
from shoestring.train.checkpoint import Snapshot
from shoestring.train.config import RunConfig
from shoestring.train.edits import Applied, apply_edits
from shoestring.train.joint_decisions import JointDecisions
from shoestring.train.noise_scale import NoiseScale
from shoestring.train.participation import Joined, SharedCheckpoints
from shoestring.train.sharded_step import ShardedStepper
from shoestring.train.step import StepResult
from shoestring.train.vote import Vote
from shoestring.train.worker_batches import WorkerBatches


class ParallelTeam:
    """The `Worker` and `Company` of the processes of a layout.

    All take every step, judge the model and decide together. Rank 0 keeps checkpoints and speaks for the run. Each process's ledger
    counts the whole run's tokens and operations, once; bytes are those that one process sends and receives (`parallel.traffic`).
    """

    leads, processes = True, 1
    noise_scale: NoiseScale | None

    def __init__(
        self, config: RunConfig, stepper: ShardedStepper, ledger: Ledger, applied: Sequence[Applied] = ()
    ) -> None:
        self.config, self.stepper, self.ledger, self.applied = config, stepper, ledger, applied
        self.noise_scale = stepper.noise_scale
        self.model, self.sharded, self.optimizer = stepper.model, stepper.sharded, stepper.sharded_optimizer
        self.traffic = StepTraffic()

    def gradients(self, batch: Batch, at: At) -> StepResult:
        with peers():
            result = self.stepper.gradients(batch, at)
        self.traffic = step_traffic(self.sharded, self.optimizer, batch, self.stepper.micro_batch)
        return result

    def apply(self, learning_rate_factor: float) -> None:
        with peers():
            self.stepper.apply(learning_rate_factor)
        self.ledger.charge(Charge(sent=self.traffic.total, received=self.traffic.total))

    def at(self, step: int) -> int:
        return step

    def spent(self, own: Totals) -> Totals:
        return own

    def agree(self, numbers: Sequence[float]) -> list[float]:
        found = torch.tensor(numbers, dtype=torch.float64)
        with peers():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        agreed: list[float] = found.tolist()
        return agreed

    def decide(self, step: int, vote: Vote) -> Vote:
        """The run ends where any process has no step left, stops where any was asked to, and saves where any is due."""
        left, stop, save = self.agree((-vote.left, float(vote.stop), float(vote.save)))
        return Vote(-left, bool(stop), bool(save))

    def figures(self) -> dict[str, float]:
        return {"processes": self.sharded.layout.processes}

    def summary(self, own: Mapping[str, Any]) -> dict[str, Any]:
        return {"parallel": {**asdict(self.sharded.layout), "bytes_per_step": asdict(self.traffic)}}

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        with peers():
            yield
        self.sharded.reshard()

    def conclude(self) -> None:
        """Its processes have nothing left to exchange."""

    def finish(self) -> None:
        """The weights are those that were judged."""

    def weights(self) -> dict[str, Tensor]:
        """The whole weights, at rank 0; nothing elsewhere."""
        leads = self.sharded.rank == 0
        with peers():
            found = {name: whole.cpu().contiguous() for name, whole in self.sharded.weights() if leads}
        return {**found, **(self.sharded.buffers() if leads else {})}

    def restore(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Any) -> None:
        with peers():
            self.stepper.restore(weights, tensors, values)

    def save(self, folder: Path, step: int, state: Mapping[str, Any], keep: int, spared: Collection[int]) -> None:
        """Write a checkpoint, of which each process writes its part."""
        weights = sharded_checkpoint.parts_here(self.sharded, self.left_out)
        with peers():
            moments, record = self.optimizer.state_here()
            state = {**state, "optimizer": record}
            sharded_checkpoint.save(folder, step, weights, moments, state, keep=keep, spared=spared)

    @property
    def left_out(self) -> Collection[str]:
        """The weights that no checkpoint holds: what stays as the base has it."""
        return frozen_of(self.model) if self.config.model.base else ()

    def load(self, folder: Path, step: int | None) -> tuple[int, Snapshot]:
        """A checkpoint, of which no process reads more than `restore` needs."""
        with peers():
            return sharded_checkpoint.load(folder, step)

    def whole(self) -> LanguageModule | None:
        """The whole model, at rank 0."""
        return self.whole_of(self.weights())

    def whole_of(self, weights: Mapping[str, Tensor]) -> LanguageModule | None:
        """The model with whole weights, of which rank 0 alone has any."""
        if self.sharded.rank != 0:
            return None
        decided = [one.decision for one in self.applied]
        made = build_model(self.config.model)
        model, _ = apply_edits(made, self.config.edits, Evidence(self.config.seed), decided)
        model.load_state_dict(weights)
        model.changed()
        return model


class ParallelProcesses:
    """The place of this process in a layout.

    transport: to the other processes.
    run: the run's folder, which all of them can read.
    """

    rank = None  # all of them are one worker, and read from one source

    def __init__(self, transport: Transport, run: Path) -> None:
        self.transport, self.run = transport, run
        self.decisions = JointDecisions(run, transport.rank == 0)

    def budget(self, config: RunConfig) -> Budget:
        return config.budget

    def join(self, config: RunConfig, parts: Parts, ledger: Ledger) -> Joined:
        stepper = parts.stepper
        assert isinstance(stepper, ShardedStepper)
        team = ParallelTeam(config, stepper, ledger, parts.applied)
        source = own_batches(parts.source, config.parallel, self.transport.rank)
        return Joined(team, team, source, SharedCheckpoints(self.run / "checkpoints", team.save, team.load), team.whole)


def own_batches(source: BatchSource, layout: ParallelLayout, rank: int) -> BatchSource:
    """What the process of this rank in a layout reads of its worker's batches: some of the rows, and of each its part."""
    part, parts = layout.part(rank), layout.parts

    def own_rows(batch: Batch) -> Batch:
        return batch.take(slice(part * batch.rows // parts, (part + 1) * batch.rows // parts))

    if isinstance(source, Stream):  # what it gives hangs on what it gave before
        found: BatchSource = PartOfStream(source, own_rows)
    else:
        worker = source if isinstance(source, WorkerBatches) else WorkerBatches(source, 0, 1)
        found = worker.divided(part, parts)
    return parts_of_rows(found, layout, rank)


@contextmanager
def peers() -> Iterator[None]:
    """Around a collective. Raises: PeerLost where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, dist.DistError) or "gloo" in text or "Connection closed" in text:
            raise PeerLost(-1, text.splitlines()[0][:200]) from None
        raise


def step_traffic(sharded: Sharded, optimizer: ShardedOptimizer, batch: Batch, micro_batch: int) -> StepTraffic:
    """Bytes that this process receives in a step on `batch`, its own part."""
    model = sharded.model
    layers = tuple(f"{name}." for name in model.anatomy().layers)
    sizes = {name: one.shape.numel() * one.parameter.element_size() for name, one in sharded.parameters.items()}
    inside = sum(size for name, size in sizes.items() if name.startswith(layers))
    rows = min(micro_batch, batch.rows)
    tokens, experts = rows * batch.inputs.length, expert_layers(model)
    return traffic(
        sharded.layout,
        layers=len(layers),
        root=sum(sizes.values()) - inside,
        layer_bytes=inside,
        width=model.about.width,
        tokens=tokens,
        micro_batches=-(-batch.rows // rows),
        expert_bytes=sum(sizes[f"{name}.{part}.weight"] for name in experts for part in ("input", "output")),
        choices=sum(layer.router.taken(tokens, True) for layer in experts.values()),
        keys=keys_and_values(model) if sharded.layout.context > 1 else 0,
        whole=optimizer.whole_bytes(),
    )
