"""The operators of `lowbit.kernels` for CUDA tensors, and the product with a matrix that lies in the GPU's order for good."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from shoestring.errors import ShoestringError
from shoestring.lowbit.gpu import choice, plain
from shoestring.lowbit.gpu.order import Order, check_words, reorder
from shoestring.lowbit.gpu.table import Key
from shoestring.lowbit.kernels import products
from shoestring.lowbit.packing import integer

TYPES = (torch.float16, torch.bfloat16, torch.float32)

MANY = 256
"""More tokens than this: the matrix is taken apart once and multiplied by torch. By reckoning, not measured."""


@torch.library.custom_op("shoestring::ordered_matmul", mutates_args=())
def ordered_matmul(x: Tensor, words: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
    """x [tokens, columns], float16, bfloat16 or float32 -> [tokens, rows] of its type, on a GPU; on a CPU in plain torch.

    words: the matrix as `order.reorder` makes it. scales: float32 [rows, groups]. Nothing is rounded to int8. There is no
    gradient, and backward through it says so. Raises: ShoestringError where the arguments do not fit each other.
    """
    _check(x, words, scales, rows, columns)
    order = Order(rows, columns, scales.shape[1])
    check_words(words, order)
    return _product(x, words, scales, order)


@ordered_matmul.register_fake
def _shape(x: Tensor, words: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
    products.refuse_two_devices(x, words, scales)
    return x.new_empty(x.shape[0], rows)


def _product(x: Tensor, words: Tensor, scales: Tensor, order: Order) -> Tensor:
    rows, columns = order.rows, order.columns
    if not len(x) or not rows or not columns:
        return x.new_zeros(len(x), rows)
    x, words, scales = x.contiguous(), words.contiguous(), scales.contiguous()
    if not x.is_cuda or (len(x) > MANY and order.groups == 1) or choice.trouble(x.device):
        return plain.ternary(x, words, scales, order)
    from shoestring.lowbit.gpu import launch

    key = Key(rows, columns, order.groups, launch.passes(x))
    with torch.cuda.device(x.device):
        config = choice.config(x.device, key, order.blocks)
        return launch.product(x, launch.ternary(words, scales, order), config)


@dataclass(frozen=True)
class _Kept:
    storage: StorageWeakRef
    version: int
    what: tuple[Order, str]
    words: Tensor


_ordered: dict[int, _Kept] = {}


def ordered(packed: Tensor, order: Order, layout: str) -> Tensor:
    """`reorder`, done once for a tensor and kept as long as its memory is in use and is not written to.

    Raises: ShoestringError where it would have to be done while a CUDA graph is captured.
    """
    version = 0 if packed.is_inference() else packed._version
    place, what = packed.data_ptr(), (order, layout)
    kept = _ordered.get(place)
    if kept is None or kept.storage.expired() or (kept.version, kept.what) != (version, what):
        if packed.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ShoestringError("run packed matrices once before a CUDA graph is captured: they are re-ordered then")
        for other in [other for other, entry in _ordered.items() if entry.storage.expired()]:
            del _ordered[other]
        kept = _Kept(StorageWeakRef(packed.untyped_storage()), version, what, reorder(packed, order, layout))
        _ordered[place] = kept
    return kept.words


@products.ternary_matmul.register_kernel("cuda")
def ternary_matmul(x: Tensor, packed: Tensor, scales: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    """`kernels.matmul` for tensors on a GPU: float16, bfloat16 or float32 activations, not rounded to int8.

    The matrix is re-ordered at its first product (`ordered`), and lies in the GPU's memory in both orders from then on;
    `order_for_gpu` leaves one.
    """
    _check(x, packed, scales, rows, columns)
    order = Order(rows, columns, scales.shape[1])
    return _product(x, ordered(packed, order, layout), scales, order)


@products.integer_matmul.register_kernel("cuda")
def integer_matmul(x: Tensor, weights: Tensor, scales: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """`kernels.int_matmul` for tensors on a GPU: float16, bfloat16 or float32 activations, not rounded to int8."""
    return integer_product(x, weights, scales, rows, columns, bits)


def integer_product(x: Tensor, weights: Tensor, scales: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """x [tokens, columns] times an integer matrix -> [tokens, rows] of the type of x; on a CPU in plain torch.

    weights, scales: as `kernels.int_matmul` takes them. Raises: ShoestringError where they do not fit each other.
    """
    integer.check(weights, rows, columns, bits)
    _check(x, weights, scales, rows, columns)
    if scales.shape[1] != 1:
        raise ShoestringError(f"an integer matrix has one scale a row, not {scales.shape[1]}")
    if not len(x) or not rows or not columns:
        return x.new_zeros(len(x), rows)
    x, weights, scales = x.contiguous(), weights.contiguous(), scales.contiguous()
    if not x.is_cuda or len(x) > MANY or choice.trouble(x.device):
        return plain.integers(x, weights, scales, columns, bits)
    from shoestring.lowbit.gpu import launch

    matrix = launch.integers(weights, scales, rows, columns, bits)
    with torch.cuda.device(x.device):
        config = choice.config(x.device, Key(rows, columns, 1, launch.passes(x), bits), matrix.blocks)
        return launch.product(x, matrix, config)


def _check(x: Tensor, matrix: Tensor, scales: Tensor, rows: int, columns: int) -> None:
    products.refuse_two_devices(x, matrix, scales)
    if x.dtype not in TYPES or x.dim() != 2 or x.shape[1] != columns:
        raise ShoestringError(
            f"activations on a GPU are float16, bfloat16 or float32 [tokens, {columns}], not {x.dtype} {list(x.shape)}"
        )
    if scales.dtype != torch.float32 or scales.dim() != 2 or len(scales) != rows or not scales.shape[1]:
        raise ShoestringError(
            f"the scales of {rows} rows are float32 [{rows}, groups], not {scales.dtype} {list(scales.shape)}"
        )
