"""What a layout of training or serving takes, reckoned from operators that were timed once on this machine."""

from shoestring.plan.simulate.layout import Simulated, WorkerLayout, WorkerLink, layouts, simulate
from shoestring.plan.simulate.profile import OperatorTimes
from shoestring.plan.simulate.serving import Served, simulate_serving
from shoestring.plan.simulate.trace import Operator, Trace, trace

__all__ = [
    "Operator",
    "OperatorTimes",
    "Served",
    "Simulated",
    "Trace",
    "WorkerLayout",
    "WorkerLink",
    "layouts",
    "simulate",
    "simulate_serving",
    "trace",
]
