"""A model without its weights: modules with their shapes, that take no memory and no time to draw numbers for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FILLS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_"})
"""Operations that draw a tensor's values. On torch's meta device they draw nothing, yet the first of them loads torch's
compiler, which takes seconds."""


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, given: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "") in FILLS:
            return given[0] if given else (named or {})["tensor"]
        return function(*given, **(named or {}))


@contextmanager
def outline() -> Iterator[None]:
    """Modules built within are on torch's meta device: shapes and no values."""
    with torch.device("meta"), _Undrawn():
        yield
