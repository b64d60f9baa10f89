"""Ternary matrices at 2 and 1.6 bits a weight, integer matrices at 4 bits, in the byte order that the kernels read."""

from shoestring.lowbit.packing.layout import LAYOUTS, Layout, check_groups, check_packed, layout_named, packed_bytes
from shoestring.lowbit.packing.ternary import pack, unpack

__all__ = ["LAYOUTS", "Layout", "check_groups", "check_packed", "layout_named", "pack", "packed_bytes", "unpack"]
