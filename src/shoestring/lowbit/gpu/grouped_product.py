"""Products with matrices in groups of 32 columns on a GPU: launched in Triton, or in plain torch."""

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.lowbit.gpu import choice, plain
from shoestring.lowbit.gpu.config import Config, grouped_by_rule, shares, token_block
from shoestring.lowbit.gpu.operators import MANY, TYPES
from shoestring.lowbit.kernels import products
from shoestring.lowbit.packing import grouped


@products.grouped_operator.register_kernel("cuda")
def grouped_matmul(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """`kernels.grouped_matmul` for tensors on a GPU: float16, bfloat16 or float32 activations, not rounded to int8.

    Raises: ShoestringError where the arguments do not fit each other.
    """
    return grouped_product(x, packed, rows, columns, bits)


def grouped_product(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """x [tokens, columns] times the matrix -> [tokens, rows] of the type of x; on a CPU in plain torch."""
    grouped.check(packed, rows, columns, bits)
    if packed.device != x.device:
        raise ShoestringError(f"activations on {x.device} cannot be multiplied with a packed matrix on {packed.device}")
    if x.dtype not in TYPES or x.dim() != 2 or x.shape[1] != columns:
        raise ShoestringError(
            f"activations on a GPU are float16, bfloat16 or float32 [tokens, {columns}], not {x.dtype} {list(x.shape)}"
        )
    if not len(x) or not rows or not columns:
        return x.new_zeros(len(x), rows)
    x, packed = x.contiguous(), packed.contiguous()
    if not x.is_cuda or len(x) > MANY or choice.trouble(x.device):
        return _plainly(x, packed, rows, columns, bits)
    with torch.cuda.device(x.device):
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        tokens = len(x) * (3 if x.dtype == torch.float32 else 1)
        config = grouped_by_rule(rows, grouped.groups_of(columns), tokens, processors)
        return launched(x, packed, rows, columns, bits, config)


def launched(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int, config: Config) -> Tensor:
    """As `grouped_product`, by the kernel: on a GPU, or on a CPU under Triton's interpreter. Nothing is checked.

    A float32 is three bfloat16 that add up to it, as for the other kernels.
    """
    if x.dtype != torch.float32:
        return _launched(x, packed, rows, columns, bits, config, x.dtype)
    high = x.bfloat16()
    middle = (x - high).bfloat16()
    low = (x - high - middle).bfloat16()
    sums = _launched(torch.cat([high, middle, low]), packed, rows, columns, bits, config, torch.float32)
    return sums.view(3, len(x), rows).sum(0)


def _launched(
    x: Tensor, packed: Tensor, rows: int, columns: int, bits: int, config: Config, dtype: torch.dtype
) -> Tensor:
    from shoestring.lowbit.gpu import grouped_kernel, launch, triton_kernels

    tokens, size = len(x), token_block(len(x))
    share, splits = shares(grouped.groups_of(columns), config)
    out = x.new_empty(tokens, rows, dtype=dtype)
    sums = out if splits == 1 else x.new_empty(splits, tokens, rows, dtype=torch.float32)
    halves = packed.view(torch.float16)
    grouped_kernel.groups_of_32[(-(-rows // config.rows), splits, -(-tokens // size))](
        x,
        packed,
        halves,
        sums,
        tokens,
        rows,
        columns,
        grouped.groups_of(columns),
        share,
        KIND=bits,
        ROWS=config.rows,
        TOKENS=size,
        WHOLE=splits == 1,
        COMPILED=launch.COMPILED,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if splits > 1:
        triton_kernels.add_up[(tokens, -(-rows // launch.ADDED))](
            sums, halves, out, splits, tokens, rows, SCALED=False, ROWS=launch.ADDED
        )
    return out


def _plainly(x: Tensor, packed: Tensor, rows: int, columns: int, bits: int) -> Tensor:
    """In plain torch, some rows at a time."""
    out = x.new_empty(len(x), rows)
    slab = max(1, plain.ROOM // columns)
    for first in range(0, rows, slab):
        which = torch.arange(first, min(first + slab, rows), device=x.device)
        weight = grouped.some_rows(packed, which, rows, columns, bits).values()[:, :columns]
        out[:, first : first + slab] = plain.product(x, weight.to(x.dtype)).to(x.dtype)
    return out
