"""Products with packed matrices on NVIDIA GPUs, in Triton: importing this teaches the operators of `lowbit.kernels` CUDA tensors.

Triton itself is imported at the first product. Without it, or on a GPU it cannot compile for, plain torch computes, which
is said once.
"""

from shoestring.lowbit.gpu import grouped_product
from shoestring.lowbit.gpu.choice import kernel_in_use
from shoestring.lowbit.gpu.order import Order, reorder, restore
from shoestring.lowbit.gpu.ordered_linear import OrderedLinear, order_for_gpu

__all__ = ["Order", "OrderedLinear", "grouped_product", "kernel_in_use", "order_for_gpu", "reorder", "restore"]
