"""The outer loop that a configuration asks for, put around the workers of this process."""

from collections.abc import Callable

from shoestring.budget.ledger import Ledger
from shoestring.errors import UsageError
from shoestring.optim.partition import members
from shoestring.sync.transport.base import Transport
from shoestring.sync.transport.local import LocalGroup
from shoestring.train.assembly import Parts
from shoestring.train.config import RunConfig
from shoestring.train.team import Team


def join_workers(
    config: RunConfig, parts: Parts, ledger: Ledger, transport: Transport | None, say: Callable[[str], None]
) -> Team | None:
    """The team of this process; None for a worker that exchanges nothing. transport: to the other workers' processes, None
    where all workers are in this one. say: takes a line for people.

    Raises: UsageError where the schedule's milestones cannot be passed by all workers at one step.
    """
    if config.sync.name == "none":
        return None
    if transport is not None and parts.milestones and config.budget.seconds is not None:
        raise UsageError(
            f"schedule = {config.schedule.name} keeps checkpoints at shares of the budget, which workers reach at different "
            "seconds: give the budget in tokens or FLOPs, or --transport local"
        )
    loop = config.sync.build()
    links = [transport] if transport is not None else LocalGroup(config.workers).transports
    outers = []
    for stepper, link in zip(parts.steppers, links, strict=True):
        roles = {member.name: member.role for member in members(stepper.model)}
        outers.append(loop.attach(stepper.model, stepper.optimizer, link, roles=roles))
    return Team(parts.steppers, outers, ledger, transport=transport, gap=loop.gap, say=say)
