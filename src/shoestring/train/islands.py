"""A worker of several processes that exchanges with others: the place of one of its processes in the run."""

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from shoestring.parallel.region import as_whole
from shoestring.sync.transport.base import Transport
from shoestring.train import sharded_checkpoint
from shoestring.train.assembly import Parts
from shoestring.train.config import RunConfig
from shoestring.train.edits import Applied
from shoestring.train.joint_decisions import JointDecisions
from shoestring.train.parallel import ParallelTeam, own_batches, peers
from shoestring.train.participation import Joined, SharedCheckpoints, require_milestones_for_all
from shoestring.train.sharded_step import ShardedStepper
from shoestring.train.step import Stepper, StepResult
from shoestring.train.team import Team, flattened
from shoestring.train.vote import Vote


class IslandTeam(Team):
    """The `Team` of one process of an island.

    Within the island all take every step and decide together, as `inside` has it; what they decide is one worker's vote. The first
    island's processes judge the run together. A process's ledger counts what its island spends, and bytes twice over: those that
    the island exchanges with others, and in the account 'island' those that this process receives within.

    applied: the edits of its model. transport: to the processes of the same rank in the other islands.
    """

    def __init__(
        self,
        config: RunConfig,
        stepper: ShardedStepper,
        outer: IslandDiLoCo,
        ledger: Ledger,
        *,
        applied: Sequence[Applied],
        transport: Transport,
        gap: int,
    ) -> None:
        super().__init__([stepper], [outer], ledger, transport=transport, gap=gap)
        self.outer = outer
        self.inside = ParallelTeam(config, stepper, ledger, applied)
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
        local = self.inside.weights()
        with peers():
            return {**local, **self.outer.whole_global_weights()}

    def save(self, folder: Path, step: int, state: Mapping[str, Any], keep: int, spared: Collection[int]) -> None:
        """Write the island's checkpoint, as of a worker that is one process. Each process writes its part: of the outer loop whole
        tensors, which it owns."""
        inside, part = self.inside, self.outer.part
        local = sharded_checkpoint.parts_here(part.sharded, ())
        still = local.keys() - part.owners.keys() - {*inside.left_out}
        weights = {name: local[name] for name in still} | self.outer.global_parts()
        kept, numbers = self.outer.state_dict()
        with peers():
            moments, record = inside.optimizer.state_here()
            outer = {key: as_whole(tensor) for key, tensor in kept.items()}
            tensors = flattened(0, local=local, inner=moments, outer=outer)
            values = self.values([{"inner": record, "outer": numbers}])
            state = {**state, "optimizer": values}
            sharded_checkpoint.save(folder, step, weights, tensors, state, keep=keep, spared=spared)

    def restore_local(
        self,
        stepper: Stepper,
        weights: Mapping[str, Tensor],
        local: Mapping[str, Tensor],
        inner: Mapping[str, Tensor],
        record: Any,
    ) -> None:
        self.inside.sharded.load(weights)  # buffers; the island's own weights come after
        self.inside.restore(local, inner, record)

    def whole(self) -> LanguageModule | None:
        """The model with the whole global weights, at the island's first process."""
        return self.inside.whole_of(self.weights())


class IslandProcesses:
    """The place of this process in a run of several islands.

    peers: to the processes of the same rank in the other islands; its rank is the island.
    rank_within: of this process in its island.
    keeper: the folder of the island's first process, which all of the island can read and write: its checkpoints are there.
    """

    def __init__(self, peers: Transport, rank_within: int, keeper: Path) -> None:
        self.peers, self.rank_within, self.keeper = peers, rank_within, keeper
        self.decisions = JointDecisions(keeper, rank_within == 0)

    @property
    def rank(self) -> int:
        """Which of the run's workers it is a part of."""
        return self.peers.rank

    def budget(self, config: RunConfig) -> Budget:
        return config.budget.share(config.workers)

    def join(self, config: RunConfig, parts: Parts, ledger: Ledger) -> Joined:
        """As `Participation`. Raises: UsageError where the schedule's milestones cannot be passed by all islands at one step."""
        require_milestones_for_all(config, parts)
        stepper = parts.stepper
        assert isinstance(stepper, ShardedStepper)
        loop = config.sync.build()
        roles = {member.name: member.role for member in members(stepper.model)}
        part = IslandPart(stepper.sharded, stepper.sharded_optimizer)
        with peers():
            outer = loop.attach(part, stepper.optimizer, self.peers, roles=roles, kind=IslandDiLoCo)
        part.received()
        team = IslandTeam(config, stepper, outer, ledger, applied=parts.applied, transport=self.peers, gap=loop.gap)
        own = own_batches(parts.source, config.parallel, self.rank_within)
        shared = SharedCheckpoints(self.keeper / "checkpoints", team.save, team.inside.load)
        return Joined(team, team, own, shared, team.whole)
