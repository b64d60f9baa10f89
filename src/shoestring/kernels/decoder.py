"""A decoder-only transformer as the native library reads it: tokens of several rows through all its layers in one call.

The structures are those of native/decoder.h.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.kernels.attention import BlockRows, Layers, LayersApart
from shoestring.kernels.choice import in_use
from shoestring.kernels.recurrent import FLOATS, NativeNorm, NativeRule, Norm, Recurrence, narrow, states_of

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64

GROUPED = {4: 2, 8: 3}
"""Kinds of matrices of so many bits in groups of 32 columns."""

MATRICES = ("reads", "output", "gate_up", "down")

DENSE = {torch.float32: 4, torch.bfloat16: 5}
"""Kinds of matrices of numbers."""


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("weights", "scales", "bias")),
        *((name, _LONG) for name in ("rows", "columns", "groups", "kind", "bfloat16_bias")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, NativeNorm) for name in ("token_norm", "query_norm", "key_norm", "channel_norm")),
        *((name, _Matrix) for name in ("reads", "output", "gate_up", "down")),
        ("recurrence", NativeRule),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, _LONG) for name in ("count", "width", "heads", "key_value_heads", "head_width", "hidden")),
    )


@dataclass(frozen=True)
class KernelMatrix:
    """A matrix [rows, columns], checked by whoever holds it.

    weights: packed trits, packed groups, or numbers, by `kind`: 0 and 1 are the codes of the layouts of trits; GROUPED; DENSE.
    scales: float32 [rows, groups], of trits. bias: [rows] of a type of FLOATS, or None.
    """

    weights: Tensor
    rows: int
    columns: int
    kind: int
    scales: Tensor | None = None
    bias: Tensor | None = None


@runtime_checkable
class NativeMatrix(Protocol):
    """A linear layer whose matrix the native library can multiply."""

    def native_matrix(self) -> KernelMatrix:
        """Its matrix, of the tensors that it has now."""
        ...


@dataclass(frozen=True)
class Layer:
    """x += output(mix(reads(token_norm(x)))), then x += down(silu(gate) * up of gate_up(channel_norm(x))).

    recurrence: what mixes; None: attention, and what is read are queries, keys and values.
    """

    token_norm: Norm
    query_norm: Norm
    key_norm: Norm
    channel_norm: Norm
    reads: KernelMatrix
    output: KernelMatrix
    gate_up: KernelMatrix
    down: KernelMatrix
    recurrence: Recurrence | None = None


class CachePlaces(NamedTuple):
    """Where a pass finds, and puts, the keys and values of its rows.

    layers: all of a model that attend. rows: of the pass. A row's first block is its number among the states.
    watch: takes the queries of all layers, turned, float32 [layers, tokens, heads, head_width], once keys and values are
        there; None: nobody wants them.
    states: of each layer that does not attend, the running state of all rows, by name. Where rows have layers of their own,
        those of one row after the other.
    """

    layers: Layers | LayersApart
    rows: BlockRows
    watch: Callable[[Tensor], None] | None = None
    states: Sequence[dict[str, Tensor]] = ()


@runtime_checkable
class NativeCache(Protocol):
    """A cache whose keys and values the native library can read and write."""

    def places(self) -> CachePlaces | None:
        """Of the pass that was begun; None where it sees its tokens in another way than each row up to each token."""
        ...


class Decoder:
    """What the native function reads, and the tensors whose memory that is.

    hidden: the inner width of the second half. Raises: ShoestringError for tensors of other sizes than follow from these, or
    that it cannot read where they lie: not on the CPU, or not contiguous.
    """

    def __init__(
        self, layers: Sequence[Layer], width: int, heads: int, key_value_heads: int, head_width: int, hidden: int
    ) -> None:
        own = heads * head_width
        attention = own + 2 * key_value_heads * head_width, own
        norms = {"token_norm": width, "query_norm": head_width, "key_norm": head_width, "channel_norm": width}
        for layer in layers:
            rule = layer.recurrence
            read, mixed = attention if rule is None else (rule.columns, rule.out)
            sizes = (read, width), (width, mixed), (2 * hidden, width), (width, hidden)
            for name, size in zip(MATRICES, sizes, strict=True):
                matrix: KernelMatrix = getattr(layer, name)
                if (matrix.rows, matrix.columns) != size:
                    raise ShoestringError(f"{name} is {matrix.rows} x {matrix.columns}, not {size[0]} x {size[1]}")
                _expect(f"the bias of {name}", matrix.bias, size[0])
            for name, count in norms.items():
                _expect(name, getattr(layer, name).gain, count)
        self.rules = [layer.recurrence for layer in layers if layer.recurrence is not None]
        """Of the layers that have a running state."""
        every = [getattr(layer, name) for layer in layers for name in MATRICES]
        self.dense = {matrix.weights.dtype for matrix in every if matrix.kind in DENSE.values()}
        """The types of matrices of numbers: these are read once for each few tokens."""
        self._shape, self._heads = (width, head_width, key_value_heads), heads
        self._kept: list[Tensor] = []
        self._layers = (_Layer * len(layers))(*(self._layer(layer) for layer in layers))
        self._decoder = _Decoder(self._layers, len(layers), width, heads, key_value_heads, head_width, hidden)

    def read(self, x: Tensor, places: CachePlaces, cos: Tensor, sin: Tensor) -> bool:
        """Take `x` [tokens, width], the embeddings of new tokens, through all layers, in place; keys and values are put to their
        places.

        cos, sin: [tokens, head_width] of their positions, as `rotate` takes them. All are contiguous float32 on the CPU. False,
        and nothing is done, where the kernel in use is torch. Raises: ShoestringError where these do not fit the decoder.
        """
        width, head_width, shared = self._shape
        tokens = places.rows.tokens
        for name, tensor, size in (("x", x, width), ("cos", cos, head_width), ("sin", sin, head_width)):
            fit = tensor.is_cpu and tensor.is_contiguous() and tensor.dtype == torch.float32
            if not fit or tensor.shape != (tokens, size):
                raise ShoestringError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not float32 [{tokens}, {size}]")
        layers = places.layers
        attending = len(self._layers) - len(self.rules)
        if len(layers) != attending or (attending and layers.shape != (shared, head_width, head_width)):
            raise ShoestringError("the cache is of another model: its layers or heads are of another number or width")
        places.rows.expect(layers.blocks, layers.block)
        apart = isinstance(layers, LayersApart)
        states = states_of(self.rules * (places.rows.count if apart else 1), places.states, layers.blocks)
        found = in_use()
        if found is None:
            return False
        library, kernel = found
        asked = None if places.watch is None else torch.empty(len(layers), tokens, self._heads, head_width)
        library.decode(
            kernel, self._decoder, layers.address, ctypes.addressof(states), apart, places.rows, cos, sin, x, asked
        )
        if places.watch is not None and asked is not None:
            places.watch(asked)
        return True

    def _layer(self, layer: Layer) -> _Layer:
        norms = (self._norm(norm) for norm in (layer.token_norm, layer.query_norm, layer.key_norm, layer.channel_norm))
        matrices = (self._matrix(getattr(layer, name)) for name in MATRICES)
        rule = NativeRule() if layer.recurrence is None else layer.recurrence.native(self._address)
        return _Layer(*norms, *matrices, rule)

    def _norm(self, norm: Norm) -> NativeNorm:
        return NativeNorm(self._address(norm.gain), norm.epsilon, narrow(norm.gain))

    def _matrix(self, matrix: KernelMatrix) -> _Matrix:
        addresses = (self._address(tensor) for tensor in (matrix.weights, matrix.scales, matrix.bias))
        groups = 0 if matrix.scales is None else matrix.scales.shape[1]
        return _Matrix(*addresses, matrix.rows, matrix.columns, groups, matrix.kind, narrow(matrix.bias))

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        if not tensor.is_cpu or not tensor.is_contiguous():
            raise ShoestringError("the native decoder reads contiguous tensors of the CPU")
        self._kept.append(tensor)
        return tensor.data_ptr()


def _expect(name: str, tensor: Tensor | None, count: int) -> None:
    if tensor is not None and not (
        tensor.dtype in FLOATS and tensor.shape == (count,) and tensor.is_cpu and tensor.is_contiguous()
    ):
        raise ShoestringError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not floats [{count}] on the CPU")


def matmul(x: Tensor, weight: Tensor) -> Tensor | None:
    """x [tokens, columns] times numbers [rows, columns], float32 or bfloat16: float32 [tokens, rows], sums in float32.

    None where the kernel in use is torch. Raises: ShoestringError where the two do not fit each other.
    """
    if weight.dtype not in DENSE or not weight.is_cpu or not weight.is_contiguous() or x.shape[1:] != weight.shape[1:]:
        raise ShoestringError(f"a matrix {weight.dtype} {list(weight.shape)} does not fit {list(x.shape)}")
    found = in_use()
    if found is None:
        return None
    library, kernel = found
    rows, columns = weight.shape
    given, out = x.float().contiguous(), torch.empty(len(x), rows)
    matrix = _Matrix(weight.data_ptr(), None, None, rows, columns, 0, DENSE[weight.dtype], False)
    library.matmul(kernel, matrix, given, out)
    return out
