"""What a run is shown to while it is prepared and trained: the screen of the command line, or a log."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from shoestring.budget.machine import Machine
from shoestring.launch.request import TrainingRequest
from shoestring.plan.planner import Plan
from shoestring.train.config import RunConfig

log = logging.getLogger(__name__)


class RunDisplay(Protocol):
    """Shows one run while it trains."""

    def show(self, line: Mapping[str, Any]) -> None:
        """Show a line of metrics, as metrics.jsonl has it."""
        ...


class View(Protocol):
    """Shows what is done to start a run. `LogView` is one that needs no screen."""

    def decided(self, request: TrainingRequest, made: Plan, machine: Machine) -> None:
        """Show the plan that was made for a request."""
        ...

    def watch(self, config: RunConfig, machine: Machine) -> AbstractContextManager[RunDisplay]:
        """Make what shows the run of `config` while it trains, as long as the context lasts."""
        ...


class LogView:
    """Gives the plan and the metrics to Python's `logging`, metrics at the level DEBUG."""

    def decided(self, request: TrainingRequest, made: Plan, machine: Machine) -> None:
        for decision in made.decisions:
            log.info("%s = %s: %s", decision.key, decision.value, decision.reason)
        for warning in made.warnings:
            log.warning("%s", warning)

    def show(self, line: Mapping[str, Any]) -> None:
        log.debug("%s", dict(line))

    @contextmanager
    def watch(self, config: RunConfig, machine: Machine) -> Iterator["LogView"]:
        yield self
