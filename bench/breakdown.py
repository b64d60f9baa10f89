"""Where the time of a training step goes: torch.profiler's events put into a few groups. Used by throughput.py."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from shoestring.train.assembly import Parts

LOSS, OPTIMISER = "loss", "optimiser and clipping"
MATRIX, ATTENTION = "matrix products", "attention"
COMPILED, EAGER, REST = "compiled element-wise kernels", "other operations, not compiled", "Python, data, the rest"
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation"}


def _chain(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The event and what it ran in, innermost first."""
    at: FunctionEvent | None = event
    while at is not None:
        yield at
        at = at.cpu_parent


def _group(event: FunctionEvent, loss_nodes: set[int]) -> str:
    names = [inside.name for inside in _chain(event)]
    if OPTIMISER in names or any("_foreach_" in name or "linalg_vector_norm" in name for name in names):
        return OPTIMISER
    if event.name in PRODUCTS:
        return MATRIX
    if any("scaled_dot_product" in name or "_flash_attention" in name for name in names):
        return ATTENTION
    if LOSS in names or any(inside.sequence_nr in loss_nodes for inside in _chain(event)):
        return LOSS
    if any("CompiledFxGraph" in name for name in names):
        return COMPILED
    return EAGER if any(name.startswith(("aten::", "autograd::")) for name in names) else REST


def breakdown(parts: Parts, steps: Callable[[int], float], count: int, device: str) -> dict[str, float]:
    """Shares of the wall-clock of `count` steps, by group, the profiler's own cost included.

    An event counts by the time spent in itself. Matrix products: wherever they are in the model, the output layer's
    too, but not the optimiser's. loss: what else the output layer's loss does, forward and backward. The rest is the
    wall-clock that no operation accounts for.
    """
    objective: Any = parts.stepper.objective
    inner, apply = objective.cross_entropy, parts.stepper.apply

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with record_function(LOSS):
            return inner(hidden, weight, targets)

    def optimise(learning_rate_factor: float) -> None:
        with record_function(OPTIMISER):
            apply(learning_rate_factor)

    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    objective.cross_entropy, parts.stepper.apply = loss, optimise  # type: ignore[method-assign]
    try:
        with profile(activities=activities, acc_events=True) as profiler:
            start = time.perf_counter()
            steps(count)
            wall = 1e6 * (time.perf_counter() - start)
    finally:
        objective.cross_entropy, parts.stepper.apply = inner, apply  # type: ignore[method-assign]
    events = [event for event in profiler.events() if event.device_type.name == "CPU"]
    # a backward node has the number of the forward operation that made it
    loss_nodes = {
        event.sequence_nr
        for event in events
        if event.sequence_nr >= 0 and any(inside.name == LOSS for inside in _chain(event))
    }
    found = dict.fromkeys((MATRIX, ATTENTION, COMPILED, EAGER, LOSS, OPTIMISER, REST), 0.0)
    for event in events:
        found[_group(event, loss_nodes)] += event.self_device_time_total if cuda else event.self_cpu_time_total
    found[REST] = 0.0
    found[REST] = wall - sum(found.values())
    return {group: microseconds / wall for group, microseconds in found.items()}
