"""The native library: found and loaded, which of its kernels is used, and what several engines compute with it."""

from shoestring.kernels.choice import TORCH, available, choose, kernel_in_use, reason
from shoestring.kernels.memory import gather, room_for

__all__ = ["TORCH", "available", "choose", "gather", "kernel_in_use", "reason", "room_for"]
