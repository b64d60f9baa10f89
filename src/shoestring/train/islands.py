"""A worker of several processes that exchanges with others: the place of one of its processes in the run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from shoestring.budget.budget import Budget
from shoestring.budget.charge import Charge
from shoestring.budget.ledger import ISLAND, Ledger
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.optim.partition import members
from shoestring.parallel.island import IslandDiLoCo, IslandPart
from shoestring.sync.transport.base import Transport
from shoestring.train.assembly import Parts
from shoestring.train.base import build_model
from shoestring.train.config import RunConfig
from shoestring.train.parallel import ParallelTeam, peers
from shoestring.train.participation import Joined, require_milestones_for_all
from shoestring.train.sharded_step import ShardedStepper
from shoestring.train.step import Stepper, StepResult
from shoestring.train.team import Team
from shoestring.train.vote import Vote
from shoestring.train.worker_batches import WorkerBatches


class IslandTeam(Team):
    """The `Team` of one process of an island.

    Within the island all take every step and decide together, as `inside` has it; what they decide is one worker's vote. The first
    island's processes judge the run together. A process's ledger counts what its island spends, and bytes twice over: those that
    the island exchanges with others, and in the account 'island' those that this process receives within.

    transport: to the processes of the same rank in the other islands.
    """

    def __init__(
        self,
        config: RunConfig,
        stepper: ShardedStepper,
        outer: IslandDiLoCo,
        ledger: Ledger,
        *,
        transport: Transport,
        gap: int,
    ) -> None:
        super().__init__([stepper], [outer], ledger, transport=transport, gap=gap)
        self.config, self.stepper, self.outer = config, stepper, outer
        self.inside = ParallelTeam(config, stepper, ledger)
        self.within = 0

    def _charge_within(self, count: int) -> None:
        self.within += count
        self.ledger.charge(Charge(sent=count, received=count), ISLAND)

    def gradients(self, batch: Batch, at: At) -> StepResult:
        return self.inside.gradients(batch, at)

    def apply(self, learning_rate_factor: float) -> None:
        with peers():
            super().apply(learning_rate_factor)
        self._charge_within(self.inside.traffic.total + self.outer.part.received())

    def decide(self, step: int, vote: Vote) -> Vote:
        return super().decide(step, self.inside.decide(step, vote))

    def agree(self, numbers: Sequence[float]) -> list[float]:
        return self.inside.agree(numbers)

    def figures(self) -> dict[str, float]:
        processes = self.processes * self.outer.part.sharded.layout.processes
        return {**super().figures(), "processes": processes, "within": self.within}

    def summary(self, own: Mapping[str, Any]) -> dict[str, Any]:
        found = {**super().summary(own), **self.inside.summary(own)}
        layout = self.outer.part.sharded.layout
        return {**found, "processes": self.processes * layout.processes, "bytes_within": self.within}

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        with peers(), self.outer.global_weights():
            yield

    def conclude(self) -> None:
        with peers():
            super().conclude()
        self._charge_within(self.outer.part.received())

    def weights(self) -> dict[str, Tensor]:
        """The whole global weights, at the island's first process; nothing elsewhere."""
        with peers():
            found = self.outer.whole_global_weights()
            local = self._whole_local()
        return {name: found.get(name, tensor) for name, tensor in local.items()}

    def _whole_local(self) -> dict[str, Tensor]:
        sharded = self.outer.part.sharded
        return {name: whole.cpu().contiguous() for name, whole in sharded.weights() if sharded.rank == 0}

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """As of a worker that is one process, at the island's first process."""
        with peers():
            return super().state()

    def local_state(self, stepper: Stepper) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        return self._whole_local(), *self.inside.state()

    def restore_local(
        self, stepper: Stepper, weights: dict[str, Tensor], kept: tuple[dict[str, Tensor], dict[str, Tensor], Any]
    ) -> None:
        self.inside.restore(*kept)

    def whole(self) -> LanguageModule | None:
        """The model with the whole global weights, at the island's first process."""
        weights = self.weights()
        if not weights:
            return None
        model = build_model(self.config.model)
        model.load_state_dict(weights)
        model.changed()
        return model


class IslandProcesses:
    """The place of this process in a run of several islands.

    peers: to the processes of the same rank in the other islands; its rank is the island.
    rank_within: of this process in its island.
    keeper: the folder of the island's first process, which keeps its checkpoints; all processes of the island can read it.
    """

    def __init__(self, peers: Transport, rank_within: int, keeper: Path) -> None:
        self.peers, self.rank_within, self.keeper = peers, rank_within, keeper

    @property
    def rank(self) -> int:
        """Which of the run's workers it is a part of."""
        return self.peers.rank

    def budget(self, config: RunConfig) -> Budget:
        return config.budget.share(config.workers)

    def join(self, config: RunConfig, parts: Parts, ledger: Ledger) -> Joined:
        """As `Participation`. Raises: UsageError where the schedule's milestones cannot be passed by all islands at one step."""
        require_milestones_for_all(config, parts)
        stepper, source, layout = parts.stepper, parts.source, config.parallel
        assert isinstance(stepper, ShardedStepper)
        assert isinstance(source, WorkerBatches)
        loop = config.sync.build()
        roles = {member.name: member.role for member in members(stepper.model)}
        part = IslandPart(stepper.sharded, stepper.sharded_optimizer)
        with peers():
            outer = loop.attach(part, stepper.optimizer, self.peers, roles=roles, kind=IslandDiLoCo)
        part.received()
        team = IslandTeam(config, stepper, outer, ledger, transport=self.peers, gap=loop.gap)
        others = None if self.rank_within == 0 else self.keeper / "checkpoints"
        own = source.divided(layout.part(self.rank_within), layout.parts)
        return Joined(team, team, own, others, team.whole)
