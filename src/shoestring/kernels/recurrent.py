"""Token mixers with a running state as the native library reads them: one token after the other, for few tokens.

The structures are those of native/recurrent.h.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from shoestring.errors import ShoestringError

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64

FLOATS = (torch.float32, torch.bfloat16)

RULES = {"lightning": 1, "gated_delta": 2, "mamba2": 3, "lolcats": 4, "supra": 5}
"""Of what a layer does with its state, by the name of its method."""


class NativeNorm(ctypes.Structure):
    """struct Norm."""

    _fields_ = (("gain", _POINTER), ("epsilon", ctypes.c_double), ("bfloat16", _LONG))


class _Array(ctypes.Structure):
    _fields_ = (("at", _POINTER), ("bfloat16", _LONG))


ARRAYS = (
    "decay",
    "step_bias",
    "skip",
    "kernel",
    "kernel_bias",
    "query_map",
    "key_map",
    "query_bias",
    "key_bias",
    "mix",
)
SIZES = ("heads", "keys", "values", "shared", "taps", "window")


class NativeRule(ctypes.Structure):
    """struct Recurrence."""

    _fields_ = (
        ("rule", _LONG),
        *((name, _LONG) for name in SIZES),
        ("norm", NativeNorm),
        *((name, _Array) for name in ARRAYS),
    )


class _State(ctypes.Structure):
    _fields_ = (("state", _POINTER), ("inputs", _POINTER), ("beside", _POINTER), ("bfloat16", _LONG))


@dataclass(frozen=True)
class Norm:
    """gain: of a type of FLOATS; None for no norm."""

    gain: Tensor | None
    epsilon: float


NO_NORM = Norm(None, 0.0)


@dataclass(frozen=True)
class Recurrence:
    """What a layer does between its first matrix and its second.

    rule: of RULES. heads: of the state, each [keys, values]. shared: heads of keys, where several heads of the state share one.
    taps: of the convolution; 0: none. window: tokens of it.
    columns: what the first matrix makes of a token. channels: of these, what the convolution goes over.
    norm: of what is said; of supra, only its epsilon.
    arrays: of ARRAYS, those that the rule reads, of types of FLOATS.
    tensors: of a row, the names in its state of the state [heads, keys, values], float32, and of what else is kept.
    """

    rule: str
    heads: int
    keys: int
    values: int
    columns: int
    arrays: dict[str, Tensor]
    tensors: tuple[str, ...] = ("state",)
    shared: int = 1
    taps: int = 0
    channels: int = 0
    window: int = 0
    norm: Norm = NO_NORM

    @property
    def out(self) -> int:
        """Columns of the second matrix."""
        return self.heads * (self.values - (self.rule == "lolcats"))

    def kept(self) -> list[tuple[int, ...]]:
        """The shapes of `tensors`."""
        state = (self.heads, self.keys, self.values)
        if self.rule == "lolcats":
            before = self.window, self.shared
            return [state, (*before, self.values - 1), (*before, self.values)]
        return [state, (self.taps - 1, self.channels)] if self.taps else [state]

    def counts(self) -> dict[str, int]:
        """How many numbers each of `arrays` has."""
        found = {"kernel": self.channels * self.taps, "kernel_bias": self.channels}
        if self.rule == "lolcats":
            found["query_map"] = found["key_map"] = self.heads * self.keys // 2 * (self.values - 1)
        elif self.rule == "supra":
            found |= {"query_bias": self.heads * self.keys, "key_bias": self.shared * self.keys}
            found |= {"query_map": self.keys * found["query_bias"], "key_map": self.keys * found["key_bias"]}
        return {name: found.get(name, self.heads) for name in self.arrays}

    def native(self, address: Callable[[Tensor | None], int | None]) -> NativeRule:
        """As the library reads it. address: says where a tensor lies, and sees that it stays.

        Raises: ShoestringError for arrays of another size or type.
        """
        for name, count in self.counts().items():
            tensor = self.arrays[name]
            if tensor.dtype not in FLOATS or tensor.numel() != count:
                raise ShoestringError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {count} floats")
        arrays = (self.arrays.get(name) for name in ARRAYS)
        found = (_Array(address(array), array is not None and array.dtype == torch.bfloat16) for array in arrays)
        norm = NativeNorm(address(self.norm.gain), self.norm.epsilon, narrow(self.norm.gain))
        return NativeRule(RULES[self.rule], *(getattr(self, name) for name in SIZES), norm, *found)


def narrow(tensor: Tensor | None) -> bool:
    """Whether its numbers are bfloat16."""
    return tensor is not None and tensor.dtype == torch.bfloat16


@runtime_checkable
class NativeRecurrence(Protocol):
    """A token mixer that the native library can compute one token after the other."""

    def native_recurrence(self) -> Recurrence:
        """How, of the tensors that it has now. Raises: ShoestringError where its options ask for what the library cannot do."""
        ...


def states_of(rules: Sequence[Recurrence], states: Sequence[dict[str, Tensor]], rows: int) -> ctypes.Array[_State]:
    """The states of all rows of the layers that have one, as the library reads and writes them.

    Raises: ShoestringError where they do not fit the rules, or where the library cannot read them.
    """
    if len(states) != len(rules):
        raise ShoestringError("the cache is of another model: other layers have a running state")
    found = []
    for rule, named in zip(rules, states, strict=True):
        tensors = [named[name] for name in rule.tensors]
        fit = all(
            tensor.shape[1:] == shape and len(tensor) >= rows and tensor.is_cpu and tensor.is_contiguous()
            for tensor, shape in zip(tensors, rule.kept(), strict=True)
        )
        beside = {tensor.dtype for tensor in tensors[1:]}
        if not fit or tensors[0].dtype != torch.float32 or len(beside) > 1 or not beside <= set(FLOATS):
            raise ShoestringError("a running state is of another model, or of numbers that the library does not read")
        addresses = [tensor.data_ptr() for tensor in tensors] + [None] * (3 - len(tensors))
        found.append(_State(*addresses, torch.bfloat16 in beside))
    return (_State * len(found))(*found)
