"""What torch's counter of operations is told beside what it knows."""

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

# it knows the flash kernels of GPUs, not that of CPUs, which does the same products
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *given, **_: sdpa_flop_count(*given[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *given, **_: sdpa_backward_flop_count(*given[:4])
    ),
    # of [.., C, C] and [.., C, N]: a product and a sum for each entry of a triangle, and each column
    torch.ops.aten.linalg_solve_triangular: lambda matrix, right, *_, **__: prod(right) * matrix[-1],
}
