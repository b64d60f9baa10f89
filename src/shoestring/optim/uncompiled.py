"""Functions that no compiler is to enter, marked without importing the compiler."""

import functools
from collections.abc import Callable
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
