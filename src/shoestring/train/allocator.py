"""Keeping freed memory: a step frees and takes the same large buffers again and again.

The C library hands large buffers back to the kernel at once, and the kernel must map and clear every page of the next
one, at every step of a small model on a CPU (`bench/throughput.py` with and without --return-memory compares). Told to keep
what is freed, the process holds its peak for as long as it lives, and the steps get their buffers for nothing.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Make this process keep the memory it frees. Returns whether the C library can be told so (glibc can)."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    # no buffer is mapped apart, the heap is never cut back, and there is one heap for all threads
    done = [library.mallopt(M_MMAP_MAX, 0), library.mallopt(M_TRIM_THRESHOLD, -1), library.mallopt(M_ARENA_MAX, 1)]
    return all(done)


def hand_back_freed_memory() -> None:
    """Return to the kernel what is free in the heap now, where the C library can: what one phase of a run takes for a while is then
    not held beside what the next one takes."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
