"""Where packed weights, keys and values lie: one run of memory in large pages, which is read faster than many small ones."""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.kernels.native import Library, library

LINE = 64
"""Bytes to whose multiples each tensor is put: a cache line, and a vector of the kernels."""

LARGE = 2 << 20
"""Bytes of a large page: below that there is nothing to gain."""


def gather(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of these tensors of the CPU, contiguous, one after another in a single storage, each at a multiple of 64 bytes.

    On Linux the storage is asked to be in pages of 2 MiB: streaming weights from memory then needs no look-up of an address
    for every 4 KiB, which in one-off timings here was worth 10 to 30 % of a product of one token, where the kernel's setting
    for large pages is `madvise` (the usual one). Where they are refused, or without the native library, the copies are as good
    as the originals. Meant for all
    packed weights of a model at once; what they share is one storage, so it is freed when the last of them is.
    """
    return [place.copy_(tensor) for place, tensor in zip(room_for(tensors), tensors, strict=True)]


def room_for(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of zeros of these shapes and types, on the CPU, that lie as `gather` puts its copies.

    What was not written yet takes no memory, but for the rest of a page.
    """
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // LINE) * LINE
    # fresh pages of the system's, which are zeros: what torch fills with zeros would be there at once
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    storage = torch.frombuffer(mmap.mmap(-1, total + LARGE, **private), dtype=torch.uint8)
    offset = -storage.data_ptr() % LARGE
    found = library()
    if isinstance(found, Library) and total >= LARGE:
        found.loaded.shoestring_large_pages(storage.data_ptr() + offset, total)
    return [
        storage[offset + start : offset + start + size].view(tensor.dtype).view(tensor.shape)
        for tensor, start, size in zip(tensors, starts, sizes, strict=True)
    ]
