"""How a process takes part in a run: which of its workers it has, what takes its steps, and its part of the budget."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import Ledger
from shoestring.contract.model import LanguageModule
from shoestring.data.windows import BatchSource
from shoestring.errors import UsageError
from shoestring.optim.partition import members
from shoestring.sync.transport.base import Transport
from shoestring.sync.transport.local import LocalGroup
from shoestring.train.assembly import Parts
from shoestring.train.checkpoint import Snapshot
from shoestring.train.company import Company, CompanyOfOne, Worker
from shoestring.train.config import RunConfig
from shoestring.train.joint_decisions import JointDecisions
from shoestring.train.team import Team


@dataclass(frozen=True)
class SharedCheckpoints:
    """The checkpoints of a run whose processes write and read each together.

    folder: that all of them can write in.
    save: as `checkpoint.save`: folder, step, JSON values, how many are kept, steps that are spared.
    load: as `checkpoint.load`: folder, step.
    """

    folder: Path
    save: Callable[[Path, int, Mapping[str, Any], int, Collection[int]], None]
    load: Callable[[Path, int | None], tuple[int, Snapshot]]


@dataclass(frozen=True)
class Joined:
    """What a process trains a run with, once it has its place in it.

    worker: computes the steps.
    company: decides with the other workers.
    source: the batches of this process.
    shared: checkpoints that all processes keep together; None: this one keeps its own.
    whole: makes the whole model where `Parts.model` is divided among processes, which all call it; None but for one of them.
    """

    worker: Worker
    company: Company
    source: BatchSource
    shared: SharedCheckpoints | None = None
    whole: Callable[[], LanguageModule | None] | None = None


class Participation(Protocol):
    """The place of a process in a run.

    rank: which of the run's workers this process is; None: all of them.
    decisions: of the run's edits, where processes make them together; None: this one does, and keeps its own.
    """

    @property
    def rank(self) -> int | None: ...

    @property
    def decisions(self) -> JointDecisions | None: ...

    def budget(self, config: RunConfig) -> Budget:
        """What this process may spend, as `Company.spent` counts it."""
        ...

    def join(self, config: RunConfig, parts: Parts, ledger: Ledger) -> Joined:
        """Take the place.

        parts: of this process.
        ledger: what the company does is charged to it.
        Raises: UsageError where the configuration cannot be had so.
        """
        ...


class FixedWorkers:
    """The place in a run of a fixed number of workers.

    transport: to the other workers, each in a process of its own; None: all workers are in this process.
    """

    decisions = None

    def __init__(self, transport: Transport | None = None) -> None:
        self.transport = transport

    @property
    def rank(self) -> int | None:
        return None if self.transport is None else self.transport.rank

    def budget(self, config: RunConfig) -> Budget:
        return config.budget if self.transport is None else config.budget.share(config.workers)

    def join(self, config: RunConfig, parts: Parts, ledger: Ledger) -> Joined:
        """As `Participation`. Raises: UsageError where the run is not of such workers, or the schedule's milestones cannot be
        passed by all of them at one step."""
        if config.transport not in ("local", "distributed"):
            raise UsageError(f"transport = {config.transport} takes processes that `launch.launch.Launch` starts")
        team = join_workers(config, parts, ledger, self.transport)
        if team is None:
            return Joined(parts.stepper, CompanyOfOne(parts.stepper), parts.source)
        return Joined(team, team, parts.source)


def require_milestones_for_all(config: RunConfig, parts: Parts) -> None:
    """Raises: UsageError where the schedule's milestones cannot be passed by all workers at one step."""
    if parts.milestones and config.budget.seconds is not None:
        raise UsageError(
            f"schedule = {config.schedule.name} keeps checkpoints at shares of the budget, which workers reach at different "
            "seconds: give the budget in tokens or FLOPs, or --transport local"
        )


def join_workers(config: RunConfig, parts: Parts, ledger: Ledger, transport: Transport | None) -> Team | None:
    """The team of this process; None for a worker that exchanges nothing.

    transport: to the other workers' processes, None where all workers are in this one.
    Raises: UsageError where the schedule's milestones cannot be passed by all workers at one step.
    """
    if config.sync.name == "none":
        return None
    if transport is not None:
        require_milestones_for_all(config, parts)
    loop = config.sync.build()
    links = [transport] if transport is not None else LocalGroup(config.workers).transports
    outers = []
    for stepper, link in zip(parts.steppers, links, strict=True):
        roles = {member.name: member.role for member in members(stepper.model)}
        outers.append(loop.attach(stepper.model, stepper.optimizer, link, roles=roles))
    return Team(parts.steppers, outers, ledger, transport=transport, gap=loop.gap)
