"""Functions that no compiler is to enter, and work that is not to be compiled, marked without importing the compiler."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(*, recursive: bool = True, reason: str | None = None) -> Callable[[F], F]:
    """As `torch.compiler.disable`, but applied when the function is first called.

    torch's own decorator imports the compiler at once, which takes seconds; whoever lists the methods needs none.

    recursive: whether what the function calls is not compiled either.
    reason: for whoever meets the break in the graph.
    """

    def mark(function: F) -> F:
        disabled: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            if not disabled:
                disabled.append(torch.compiler.disable(function, recursive=recursive, reason=reason))
            return disabled[0](*positional, **named)

        return cast(F, call)

    return mark


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Within this nothing is compiled, and what was compiled computes as if it were not."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
