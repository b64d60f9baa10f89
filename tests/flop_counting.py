"""What torch's counter of operations is told beside what it knows."""

import math
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count


def _transform(complex_input: bool) -> Any:
    """Of n real numbers 2.5 n log2 n, of n complex ones twice that."""

    def flops(given: Any, dims: Any, *others: Any, out_shape: Any = None, **_: Any) -> float:
        size = max(given[dims[0]], out_shape[dims[0]])
        return (5.0 if complex_input else 2.5) * size * math.log2(size) * prod(given) / given[dims[0]]

    return flops


# it knows the flash kernels of GPUs, not that of CPUs, which does the same products
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *given, **_: sdpa_flop_count(*given[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *given, **_: sdpa_backward_flop_count(*given[:4])
    ),
    torch.ops.aten._fft_r2c: _transform(False),
    torch.ops.aten._fft_c2r: _transform(False),
    torch.ops.aten._fft_c2c: _transform(True),
    # of [.., C, C] and [.., C, N]: a product and a sum for each entry of a triangle, and each column
    torch.ops.aten.linalg_solve_triangular: lambda matrix, right, *_, **__: prod(right) * matrix[-1],
}
