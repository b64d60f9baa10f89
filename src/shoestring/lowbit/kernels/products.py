"""The products with packed matrices: arguments checked, the kernel in use called; registered with torch as operators."""

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.kernels.choice import native
from shoestring.lowbit.kernels import plain
from shoestring.lowbit.packing import grouped, integer
from shoestring.lowbit.packing.layout import check_groups, check_size, layout_named


def matmul(x: Tensor, packed: Tensor, scales: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    """Activations times a packed ternary matrix: float32 [tokens, columns] -> float32 [tokens, rows].

    packed: uint8 [packed_bytes(rows, columns, layout)], as `packing.pack` makes it. scales: float32 [rows, groups], one for
    each of `groups` equal runs of columns; more than one group must each be a multiple of the layout's 16 or 20 columns.

    Each token is rounded to int8 first (`lowbit.activations.quantise_tokens`): codes q, scale s. With trits t and groups g,

        out = s a_G,    a_g = round(a_{g-1} + scales[row, g] sum over the group of t q),    a_0 = 0

    where the sum is exact and each a_g is rounded once, to float32 (a fused multiply-add). So every kernel gives the same
    bits. A token that holds a NaN or an infinity gets NaN in every row. There is no gradient, and backward through it says so.

    Also `torch.ops.shoestring.ternary_matmul`, for torch.compile and export.
    Raises: ShoestringError where the arguments do not fit each other or are on two devices; UsageError for an unknown layout.
    """
    if _direct(x):
        return _ternary(x, packed, scales, rows, columns, layout)
    return ternary_matmul(x, packed, scales, rows, columns, layout)


def int_matmul(x: Tensor, weights: Tensor, scales: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """Activations times an integer matrix, as of an output head: float32 [tokens, columns] -> float32 [tokens, rows].

    weights: int8 [rows, columns] at 8 bits; uint8 as `packing.integer.pack` makes it at 4. scales: float32 [rows, 1].
    out = s scales[row] (sum of w q), rounded to float32 after each factor; the rest as for `matmul`.

    Also `torch.ops.shoestring.integer_matmul`. Raises: ShoestringError where the arguments do not fit each other or
    are on two devices.
    """
    if _direct(x):
        return _integer(x, weights, scales, rows, columns, bits)
    return integer_matmul(x, weights, scales, rows, columns, bits)


def grouped_matmul(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """Activations times a matrix of 4 or 8 bits in groups of 32 columns: float32 [tokens, columns] -> float32 [tokens, rows].

    packed: uint8, as `packing.grouped.pack` makes it. Each group of a token is rounded to int8 by itself: codes q, scale s. With
    codes w, scales d and minimums m of the matrix, over the groups g in order,

        out = a_G,    b_g = round(a_{g-1} + round(d_g s_g) sum(w q)),    a_g = round(b_g + m_g round(s_g sum(q))),    a_0 = 0

    each rounded once, to float32; without minimums a_g = b_g. So every kernel gives the same bits. Where a number of a token is not
    finite, all its rows are NaN. There is no gradient.

    Also `torch.ops.shoestring.grouped_matmul`. Raises: ShoestringError where the arguments do not fit each other or are on two
    devices.
    """
    if _direct(x):
        return _grouped(x, packed, rows, columns, bits)
    return grouped_operator(x, packed, rows, columns, bits)


def grouped_rows(packed: Tensor, which: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """float32 [n, columns]: the rows of these numbers, [n] int64 on the device of `packed`, whose length was checked.

    Raises: IndexError for a number that there is no row of.
    """
    found = native() if _direct(packed) and packed.is_contiguous() else None
    if found is not None:
        made = found[0].grouped_rows(bits, packed, rows, columns, which.to(torch.int64).contiguous())
        if made is not None:
            return made
    elif not which.numel() or 0 <= int(which.min()) <= int(which.max()) < rows:
        return grouped.some_rows(packed, which, rows, columns, bits).values()[:, :columns]
    raise IndexError(f"ids lie between 0 and {rows - 1}")


def _direct(x: Tensor) -> bool:
    """Whether torch's dispatcher has nothing to do: no tracing, no gradient, no tensor of a kind of its own."""
    plain_tensor = type(x) is Tensor and x.is_cpu and not torch.compiler.is_compiling()
    return plain_tensor and not (x.requires_grad and torch.is_grad_enabled())


def _ternary(x: Tensor, packed: Tensor, scales: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    chosen = layout_named(layout)
    check_size(packed, rows, columns, chosen)
    _check(x, packed, scales, rows, columns)
    check_groups(scales.shape[1], columns, chosen)
    if not columns:
        return x.new_zeros(x.shape[0], rows)
    found = native()
    if found is None:
        return plain.ternary_matmul(x, packed, scales, rows, columns, chosen)
    library, kernel = found
    return library.ternary(kernel, chosen.code, x.contiguous(), packed.contiguous(), scales.contiguous(), rows)


def _integer(x: Tensor, weights: Tensor, scales: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    integer.check(weights, rows, columns, bits)
    _check(x, weights, scales, rows, columns)
    if scales.shape[1] != 1:
        raise ShoestringError(f"an integer matrix has one scale a row, not {scales.shape[1]}")
    if not columns:
        return x.new_zeros(x.shape[0], rows)
    found = native()
    if found is None:
        return plain.integer_matmul(x, weights, scales, rows, columns, bits)
    library, kernel = found
    return library.integer(kernel, bits, x.contiguous(), weights.contiguous(), scales.contiguous(), rows)


def _grouped(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    grouped.check(packed, rows, columns, bits)
    if packed.device != x.device:
        raise ShoestringError(f"activations on {x.device} cannot be multiplied with a packed matrix on {packed.device}")
    if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != columns:
        raise ShoestringError(f"activations are float32 [tokens, {columns}], not {_described(x)}")
    if not columns:
        return x.new_zeros(x.shape[0], rows)
    found = native()
    if found is None:
        return plain.grouped_matmul(x, packed, rows, columns, bits)
    library, kernel = found
    return library.grouped(kernel, bits, x.contiguous(), packed.contiguous(), rows)


def refuse_two_devices(x: Tensor, matrix: Tensor, scales: Tensor) -> None:
    """A kernel is given addresses, and reads all of them on the device of `x`. Raises: ShoestringError where that is wrong."""
    for name, other in (("a packed matrix", matrix), ("scales", scales)):
        if other.device != x.device:
            raise ShoestringError(f"activations on {x.device} cannot be multiplied with {name} on {other.device}")


def _check(x: Tensor, matrix: Tensor, scales: Tensor, rows: int, columns: int) -> None:
    refuse_two_devices(x, matrix, scales)
    if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != columns:
        raise ShoestringError(f"activations are float32 [tokens, {columns}], not {_described(x)}")
    if scales.dtype != torch.float32 or scales.dim() != 2 or scales.shape[0] != rows or not scales.shape[1]:
        raise ShoestringError(f"the scales of {rows} rows are float32 [{rows}, groups], not {_described(scales)}")


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@torch.library.custom_op("shoestring::ternary_matmul", mutates_args=(), device_types="cpu")
def ternary_matmul(x: Tensor, packed: Tensor, scales: Tensor, rows: int, columns: int, layout: str) -> Tensor:
    """`matmul` as an operator of torch."""
    return _ternary(x, packed, scales, rows, columns, layout)


@torch.library.custom_op("shoestring::integer_matmul", mutates_args=(), device_types="cpu")
def integer_matmul(x: Tensor, weights: Tensor, scales: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """`int_matmul` as an operator of torch."""
    return _integer(x, weights, scales, rows, columns, bits)


@torch.library.custom_op("shoestring::grouped_matmul", mutates_args=(), device_types="cpu")
def grouped_operator(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """`grouped_matmul` as an operator of torch."""
    return _grouped(x, packed, rows, columns, bits)


@grouped_operator.register_fake
def _grouped_shape(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    return x.new_empty(x.shape[0], rows)


@ternary_matmul.register_fake
@integer_matmul.register_fake
def _shape(x: Tensor, weights: Tensor, scales: Tensor, rows: int, columns: int, kind: object) -> Tensor:
    refuse_two_devices(x, weights, scales)  # torch comes here where one of them alone is on the meta device
    return x.new_empty(x.shape[0], rows)
