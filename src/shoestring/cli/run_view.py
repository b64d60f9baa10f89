"""A run on the screen, from its plan to its last step."""

from shoestring.budget.machine import Machine
from shoestring.cli.live import LiveView
from shoestring.cli.planning import show_plan
from shoestring.cli.screen import Screen
from shoestring.launch.request import TrainingRequest
from shoestring.plan.planner import Plan
from shoestring.plan.sizes import flops_per_token
from shoestring.train.config import RunConfig


class RunView:
    """The `launch.view.View` of the command line. live: what shows the run while it trains."""

    def __init__(self, console: Screen, live: type[LiveView] = LiveView) -> None:
        self.console, self.live = console, live

    def decided(self, request: TrainingRequest, made: Plan, machine: Machine) -> None:
        show_plan(self.console, request, made, machine)

    def watch(self, config: RunConfig, machine: Machine) -> LiveView:
        precision = config.execution.precision
        peak = machine.matmul[machine.best_precision if precision == "auto" else precision]
        return self.live(self.console, peak, flops_per_token(config.model), config.budget.seconds)
