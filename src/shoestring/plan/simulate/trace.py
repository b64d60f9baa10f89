"""The operators of a training pass, each with its shapes, from a model without weights."""

import copy
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "attention")
"""Parts of the names of operators that do the products of matrices: what tensor parallelism divides."""


@dataclass(frozen=True)
class TensorShape:
    """An operand: sizes, strides and the name of its type. It stands in for the tensor when the operator is timed."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.size)}{'' if self._plain() else f'/{list(self.stride)}'}"

    def _plain(self) -> bool:
        expected, at = [], 1
        for size in reversed(self.size):
            expected.append(at)
            at *= size
        return list(self.stride) == expected[::-1]

    @property
    def span(self) -> int:
        """Elements from the first to the last in memory."""
        if 0 in self.size:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))

    def made(self, device: str) -> Tensor:
        """A tensor of this shape: numbers around 0, or zeros of a whole type, which are valid indices of anything."""
        kind: torch.dtype = getattr(torch, self.dtype)
        flat = torch.zeros(max(self.span, 1), dtype=kind, device=device)
        if kind.is_floating_point:
            flat.normal_()
        return flat.as_strided(self.size, self.stride)


@dataclass(frozen=True)
class Operator:
    """One call of an operator of torch. function: it. operands, options: as it is called, each tensor as a `TensorShape`."""

    function: Any
    operands: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """What tells its time: the operator and its operands."""
        given = [*map(str, self.operands), *(f"{key}={value}" for key, value in self.options)]
        return f"{self.function}({', '.join(given)})"

    @property
    def product(self) -> bool:
        """Whether it multiplies matrices."""
        name = str(self.function).split(".")[1]
        return any(part in name for part in PRODUCTS)

    def call(self, device: str) -> Any:
        """A function that calls it on tensors of these shapes, made once."""
        operands = _filled(self.operands, device)
        options = {key: _filled(value, device) for key, value in self.options}
        return lambda: self.function(*operands, **options)


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorShape(tuple(value.shape), value.stride(), str(value.dtype).removeprefix("torch."))
    if isinstance(value, list | tuple):
        return tuple(_described(one) for one in value)
    return value


def _filled(value: Any, device: str) -> Any:
    if isinstance(value, TensorShape):
        return value.made(device)
    if isinstance(value, tuple):
        return [_filled(one, device) for one in value]
    return value


def _only_a_view(function: Any) -> bool:
    """Whether it gives another look at its operand and moves nothing."""
    returns = function._schema.returns
    return bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)


@dataclass(frozen=True)
class Trace:
    """A pass. operators: how often each is called. calls: of all operators, those that only look at an operand otherwise too."""

    operators: Counter[Operator]
    calls: int


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Operator] = Counter()
        self.calls = 0

    def __torch_dispatch__(
        self, function: Any, kinds: Any, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*given, **(named or {}))
        if not isinstance(function, torch._ops.OpOverload) or function.namespace != "aten":
            return made
        self.calls += 1
        if not _only_a_view(function):
            options = tuple((key, _described(value)) for key, value in (named or {}).items())
            self.found[Operator(function, tuple(map(_described, given)), options)] += 1
        return made


def _weightless(model: LanguageModule, device: str) -> LanguageModule:
    """A copy whose parameters and buffers have a device and no memory; within `FakeTensorMode`. Tied weights stay tied."""
    memo: dict[int, Any] = {}
    for one in (*model.parameters(), *model.buffers()):
        empty = torch.empty_strided(one.size(), one.stride(), dtype=one.dtype, device=device)
        memo[id(one)] = nn.Parameter(empty, one.requires_grad) if isinstance(one, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def trace(model: LanguageModule, rows: int, context: int, *, precision: str = "float32", device: str = "cpu") -> Trace:
    """The operators of a forward and a backward pass with the loss of the next token. Nothing is computed, save where a model
    decides by numbers what it does: then one pass is made.

    model: with or without weights, on any device; it stays as it is.
    rows, context: sequences at once, and their tokens.
    precision: of products of matrices, as `ExecutionConfig` has it.
    Raises: UsageError for a model without weights that needs them.
    """
    lower = torch.autocast(device, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.simplefilter(
                "ignore"
            )  # parts that look for a packed kernel ask a tensor without memory where it lies
            return _recorded(_weightless(model, device), rows, context, device, lower)
    except DataDependentOutputException:  # a part that looks at numbers to decide what to do
        if model.device.type == "meta":
            raise UsageError(
                "this model decides by numbers what it computes: it can be traced with its weights only"
            ) from None
        return _recorded(model, rows, context, device, lower)


def _recorded(model: LanguageModule, rows: int, context: int, device: str, lower: AbstractContextManager[Any]) -> Trace:
    ids = torch.zeros(rows, context, dtype=torch.int64, device=device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _Recorder() as recorder:
        with lower:
            loss = NextToken(plain)(model, Batch(Inputs(ids), ids), At())
        torch.autograd.grad(loss.mean, trained, allow_unused=True)  # which leaves nothing in the model
    return Trace(recorder.found, recorder.calls)
