"""What a run is shown to while it is prepared and trained: the screen of the command line, or a log."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from shoestring.budget.machine import Machine
from shoestring.launch.request import Request
from shoestring.plan.planner import Plan
from shoestring.train.config import RunConfig


class RunDisplay(Protocol):
    """Shows one run while it trains."""

    def say(self, line: str) -> None:
        """Show a line for people."""
        ...

    def show(self, line: Mapping[str, Any]) -> None:
        """Show a line of metrics, as metrics.jsonl has it."""
        ...


class View(Protocol):
    """Shows what is done to start a run. `LogView` is one that needs no screen."""

    def say(self, line: str) -> None:
        """Show a line for people."""
        ...

    def detail(self, line: str) -> None:
        """Show a line about how the run is prepared."""
        ...

    def decided(self, request: Request, made: Plan, machine: Machine) -> None:
        """Show the plan that was made for a request."""
        ...

    def watch(self, config: RunConfig, machine: Machine) -> AbstractContextManager[RunDisplay]:
        """Make what shows the run of `config` while it trains, as long as the context lasts."""
        ...


class LogView:
    """Gives every line to Python's `logging`, under the name 'shoestring'; metrics at the level DEBUG."""

    def __init__(self) -> None:
        self.log = logging.getLogger("shoestring")

    def say(self, line: str) -> None:
        self.log.info("%s", line)

    def detail(self, line: str) -> None:
        self.log.info("%s", line)

    def decided(self, request: Request, made: Plan, machine: Machine) -> None:
        for decision in made.decisions:
            self.log.info("%s = %s: %s", decision.key, decision.value, decision.reason)
        for warning in made.warnings:
            self.log.warning("%s", warning)

    def show(self, line: Mapping[str, Any]) -> None:
        self.log.debug("%s", dict(line))

    @contextmanager
    def watch(self, config: RunConfig, machine: Machine) -> Iterator["LogView"]:
        yield self
