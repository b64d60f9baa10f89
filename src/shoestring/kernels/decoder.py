"""A decoder-only transformer of packed matrices, one token through all its layers in one native call.

The structures are those of native/decoder.h.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.kernels.choice import native

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64

GROUPED = {4: 2, 8: 3}


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("packed", _POINTER),
        ("scales", _POINTER),
        *((n, _LONG) for n in ("rows", "columns", "groups", "layout")),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("gain", _POINTER), ("epsilon", ctypes.c_double))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("token_norm", "query_norm", "key_norm", "channel_norm")),
        *((name, _Matrix) for name in ("qkv", "output", "gate_up", "down")),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, _LONG) for name in ("count", "width", "heads", "key_value_heads", "head_width", "hidden")),
    )


class _Cache(ctypes.Structure):
    _fields_ = (("keys", _POINTER), ("values", _POINTER), *((n, _LONG) for n in ("layer_step", "head_step", "length")))


@dataclass(frozen=True)
class Matrix:
    """packed, scales: as `products.matmul` takes them, checked. layout: its code."""

    packed: Tensor
    scales: Tensor
    rows: int
    columns: int
    layout: int


@dataclass(frozen=True)
class Norm:
    """gain: float32; None for no norm."""

    gain: Tensor | None
    epsilon: float


@dataclass(frozen=True)
class Layer:
    """x += output(attention(qkv(token_norm(x)))), then x += down(silu(gate) * up of gate_up(channel_norm(x)))."""

    token_norm: Norm
    query_norm: Norm
    key_norm: Norm
    channel_norm: Norm
    qkv: Matrix
    output: Matrix
    gate_up: Matrix
    down: Matrix


class Decoder:
    """What the native function reads, and the tensors whose memory that is.

    hidden: the inner width of the second half. Raises: ShoestringError for tensors of other sizes than follow from these, or
    that it cannot read where they lie: not on the CPU, or not contiguous.
    """

    def __init__(
        self, layers: Sequence[Layer], width: int, heads: int, key_value_heads: int, head_width: int, hidden: int
    ) -> None:
        own = heads * head_width
        matrices = {
            "qkv": (own + 2 * key_value_heads * head_width, width),
            "output": (width, own),
            "gate_up": (2 * hidden, width),
            "down": (width, hidden),
        }
        norms = {"token_norm": width, "query_norm": head_width, "key_norm": head_width, "channel_norm": width}
        for layer in layers:
            for name, size in matrices.items():
                matrix: Matrix = getattr(layer, name)
                if (matrix.rows, matrix.columns) != size:
                    raise ShoestringError(f"{name} is {matrix.rows} x {matrix.columns}, not {size[0]} x {size[1]}")
            for name, count in norms.items():
                _expect(name, getattr(layer, name).gain, count)
        self._cache = (len(layers), key_value_heads, head_width)
        self._width = width
        self._kept: list[Tensor] = []
        self._layers = (_Layer * len(layers))(*(self._layer(layer) for layer in layers))
        self._decoder = _Decoder(self._layers, len(layers), width, heads, key_value_heads, head_width, hidden)

    def step(self, x: Tensor, keys: Tensor, values: Tensor, length: int, cos: Tensor, sin: Tensor) -> bool:
        """Take `x` [width], the embedding of the token after `length` others, through all layers, in place.

        keys, values: [layers, key_value_heads, capacity, head_width] with room for it: its own are put in. cos, sin:
        [head_width] of its place, as `rotate` takes them. All are float32 on the CPU, and contiguous but for the first two
        dimensions of the cache. False, and nothing is done, where the kernel in use is torch.
        Raises: ShoestringError where these do not fit the decoder.
        """
        _expect("x", x, self._width)
        _expect("cos", cos, self._cache[-1])
        _expect("sin", sin, self._cache[-1])
        for held in (keys, values):
            count, heads, capacity, width = held.shape
            inner = held.stride()[2:] == (width, 1) and held.stride() == keys.stride()
            if (count, heads, width) != self._cache or held.dtype != torch.float32 or not held.is_cpu or not inner:
                raise ShoestringError("the cache is of another model")
            if not 0 <= length < capacity:
                raise ShoestringError(f"the cache has no place {length}: it has {capacity}")
        found = native()
        if found is None:
            return False
        library, kernel = found
        cache = _Cache(keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1), length)
        library.decode(kernel, self._decoder, cache, cos, sin, x)
        return True

    def _layer(self, layer: Layer) -> _Layer:
        norms = (self._norm(norm) for norm in (layer.token_norm, layer.query_norm, layer.key_norm, layer.channel_norm))
        matrices = (self._matrix(matrix) for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down))
        return _Layer(*norms, *matrices)

    def _norm(self, norm: Norm) -> _Norm:
        return _Norm(None if norm.gain is None else self._address(norm.gain), norm.epsilon)

    def _matrix(self, matrix: Matrix) -> _Matrix:
        addresses = (self._address(matrix.packed), self._address(matrix.scales))
        return _Matrix(*addresses, matrix.rows, matrix.columns, matrix.scales.shape[1], matrix.layout)

    def _address(self, tensor: Tensor) -> int:
        if not tensor.is_cpu or not tensor.is_contiguous():
            raise ShoestringError("the native decoder reads contiguous tensors of the CPU")
        self._kept.append(tensor)
        return tensor.data_ptr()


def _expect(name: str, tensor: Tensor | None, count: int) -> None:
    if tensor is not None and not (
        tensor.dtype == torch.float32 and tensor.shape == (count,) and tensor.is_cpu and tensor.is_contiguous()
    ):
        raise ShoestringError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not float32 [{count}] on the CPU")
