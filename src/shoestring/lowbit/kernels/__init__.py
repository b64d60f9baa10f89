"""Products of activations with packed matrices: native kernels, and plain torch where there are none."""

from shoestring.lowbit.kernels.choice import available, choose, kernel_in_use, reason
from shoestring.lowbit.kernels.memory import gather
from shoestring.lowbit.kernels.products import int_matmul, matmul

__all__ = ["available", "choose", "gather", "int_matmul", "kernel_in_use", "matmul", "reason"]
