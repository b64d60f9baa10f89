"""Products of activations with packed matrices: native kernels, and plain torch where there are none."""

from shoestring.kernels import available, choose, gather, kernel_in_use, reason
from shoestring.lowbit.kernels.products import grouped_matmul, grouped_rows, int_matmul, matmul

__all__ = [
    "available",
    "choose",
    "gather",
    "grouped_matmul",
    "grouped_rows",
    "int_matmul",
    "kernel_in_use",
    "matmul",
    "reason",
]
