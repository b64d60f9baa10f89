"""Which kernel is used: the fastest that this processor can run, or the one that was chosen."""

import warnings

from shoestring.errors import UsageError, did_you_mean
from shoestring.kernels.native import Library, library

TORCH = "torch"
"""The name of the plain torch path, which is always there."""

TIMED = "avx512_vbmi"
"""The kernel that was timed beside dense products (`bench/ternary_cpu.py`, `bench/ternary_models.py`); no other was."""

_chosen: str | None = None
_warned = False


def available() -> tuple[str, ...]:
    """The kernels that can be used here, the slowest first: 'torch', 'plain' (C++), and the processor's vector extensions."""
    found = library()
    return (TORCH, *found.kernels) if isinstance(found, Library) else (TORCH,)


def choose(kernel: str | None) -> None:
    """Use this kernel from now on, in all threads; None: the fastest. All give the same bits; this is for tests and timings.

    Raises: UsageError where it cannot run here.
    """
    global _chosen
    if kernel is not None and kernel not in available():
        raise UsageError(f"no kernel '{kernel}' runs here: {did_you_mean(kernel, available())}")
    _chosen = kernel


def kernel_in_use() -> str:
    """The name of the kernel that a product would use now."""
    return _chosen or available()[-1]


def reason() -> str:
    """Why the kernel in use is a slow one, or that it is not known how fast it is, for the user to read; '' for `TIMED`."""
    kernel, found = kernel_in_use(), library()
    if _chosen is not None and _chosen != available()[-1]:
        return f"'{_chosen}' was chosen; the fastest here is '{available()[-1]}'"
    if isinstance(found, str):
        return f"{found}; plain torch unpacks the matrix for every product and is slow"
    if kernel == "plain":
        return "there are vector kernels for x86 with AVX2 or AVX-512 VNNI only; plain C++ is slow"
    if kernel != TIMED:
        return f"'{kernel}' was never timed beside dense products, as '{TIMED}' was: whether it is faster is not known"
    return ""


def in_use() -> tuple[Library, int] | None:
    """The library and the number of the kernel in use; None for torch."""
    found, kernel = library(), kernel_in_use()
    if isinstance(found, Library) and kernel != TORCH:
        return found, found.kernels[kernel]
    return None


def native() -> tuple[Library, int] | None:
    """The library and the number of the kernel in use; None for torch, which is said once unless it was chosen."""
    global _warned
    found = in_use()
    if found is None and _chosen is None and not _warned:
        _warned = True
        warnings.warn(f"packed matrices are computed with plain torch: {reason()}", RuntimeWarning, stacklevel=4)
    return found
