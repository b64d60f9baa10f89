"""The time that torch's collectives take, whoever calls them: `fully_shard`, DTensor, an optimiser, or the trainer.

A process that waits in a collective works for nobody. No engine of torch says how long it waited, so its functions are stood in
for, in the main thread and for as long as a run lasts. What is called with `async_op` returns at once, and is not waited for here.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed import _functional_collectives

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "gather",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "scatter",
    "send",
)
"""Functions of `torch.distributed` that wait; some are of certain versions alone."""


@contextmanager
def around_collectives(waiting: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """While open, every collective of this thread runs within `waiting()`."""
    thread, inside = threading.get_ident(), False

    def stood_in(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside or threading.get_ident() != thread:
                return function(*arguments, **options)
            inside = True
            try:
                with waiting():
                    return function(*arguments, **options)
            finally:
                inside = False

        return timed

    # DTensor begins collectives by operators that return at once, and waits by this function
    places: list[tuple[Any, str]] = [(_functional_collectives, "wait_tensor")]
    places += [(dist, name) for name in COLLECTIVES if hasattr(dist, name)]
    before = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, function in before:
        setattr(module, name, stood_in(function))
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
